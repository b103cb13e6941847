"""``narrowbert-prep inspect``: print rows of a shard folder as text, with their masks."""

from collections.abc import Sequence

from data_prep.commands.arguments import folder_parser
from data_prep.contract.command_line import UserError


def run(argv: Sequence[str]) -> int:
    """Print rows; the exit code."""
    from data_prep.contract.shard_format import SPLITS
    from data_prep.contract.shards import open_shards
    from data_prep.report.rows_as_text import rows_as_text

    parser = folder_parser("inspect", "Print rows of a shard folder as text, with their masks.")
    parser.add_argument("--split", default="train", choices=SPLITS, help="default: %(default)s")
    parser.add_argument("--rows", type=int, default=3, help="how many rows; default: %(default)s")
    parser.add_argument("--variant", type=int, default=0, help="which of the maskings; default: %(default)s")
    options = parser.parse_args(argv)
    shards = open_shards(options.folder)
    if not 0 <= options.variant < shards.num_variants:
        raise UserError(f"--variant {options.variant}: the shards hold variants 0 to {shards.num_variants - 1}")
    if options.rows < 1:
        raise UserError(f"--rows {options.rows}: expected 1 or more")
    split = shards.split_with_rows(options.split)
    print(
        f"{options.folder} {split.name}: {split.num_rows:,} rows of {shards.seq_length} tokens, "
        f"{shards.num_variants} variants of {shards.masked_per_row} masks, root hash {shards.root_hash}"
    )
    print("{house->[MASK]} was masked, {house->tree} replaced, {house=} chosen but kept, | a document's start\n")
    for row in rows_as_text(shards, options.split, options.rows, options.variant):
        print(row)
    return 0
