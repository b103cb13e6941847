"""The command `narrowbert-prep`: vocab | shards | verify | inspect."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data_prep.command_line import (
    USER_ERROR_EXIT_CODE,
    Parser,
    UserError,
    choose_command,
    read_config,
    run_command,
)
from data_prep.config import PrepConfig, check, tokenizer_path

PROGRAM = "narrowbert-prep"

COMMANDS = {
    "vocab": "train a WordPiece tokenizer on a corpus -> tokenizer.json",
    "shards": "tokenize, pack and mask the same corpus -> shard folder",
    "verify": "check every byte and every row of a shard folder",
    "inspect": "print rows of a shard folder as text, with their masks",
}
DESCRIPTION = f"""Text into verified, pre-masked shards for `narrowbert train`.

Your own text, with the same options for both commands:
  {PROGRAM} vocab  --config configs/prep/quickstart.yaml --corpus.paths '[my/*.jsonl.gz]' --output my-shards
  {PROGRAM} shards --config configs/prep/quickstart.yaml --corpus.paths '[my/*.jsonl.gz]' --output my-shards"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the process's exit code (0 done, 2 a mistake the user can mend)."""
    return run_command(PROGRAM, _main, sys.argv[1:] if argv is None else argv)


def _main(argv: Sequence[str]) -> int:
    run = {"vocab": _vocab, "shards": _shards, "verify": _verify, "inspect": _inspect}
    command = choose_command(PROGRAM, DESCRIPTION, COMMANDS, argv)
    if len(argv) > 1:
        return run[command](argv[1:])
    try:  # without a single option: the command's help, though nothing was done
        return run[command](["--help"])
    except SystemExit:
        return USER_ERROR_EXIT_CODE


def _config(argv: Sequence[str], command: str, description: str) -> PrepConfig:
    config = read_config(PrepConfig, argv, f"{PROGRAM} {command}", description)
    check(config)
    return config


def _vocab(argv: Sequence[str]) -> int:
    from data_prep.corpus import find_sources, read_documents
    from data_prep.vocabulary import fingerprint, save_tokenizer, train_wordpiece

    config = _config(argv, "vocab", "Train a WordPiece tokenizer on the corpus and write tokenizer.json.")
    start = time.monotonic()
    path = tokenizer_path(config)
    sources = find_sources(config.corpus)
    with _ProgressBar() as progress:

        def texts():
            for document in read_documents(sources, config.corpus):
                progress("documents", 1)
                yield document.text

        tokenizer = train_wordpiece(
            texts,
            size=config.vocabulary.size,
            lowercase=config.vocabulary.lowercase,
            min_frequency=config.vocabulary.min_frequency,
            alphabet_size=config.vocabulary.alphabet_size,
        )
    new = save_tokenizer(tokenizer, path)
    print(
        f"{path}{'' if new else ' (the same was there already)'}: {tokenizer.get_vocab_size()} entries, "
        f"sha256 {fingerprint(path)}, {time.monotonic() - start:.1f} s"
    )
    return 0


def _shards(argv: Sequence[str]) -> int:
    from data_prep.stages import build_shards

    config = _config(argv, "shards", "Tokenize, pack and mask the corpus into a shard folder.")
    start = time.monotonic()
    with _ProgressBar() as progress:
        summary = build_shards(config, progress)
    if summary.already_there:
        print(f"{config.output} is complete already, made from the same corpus and configuration")
    for name, counts in summary.splits.items():
        print(f"{name}: {counts['documents']:,} documents, {counts['tokens']:,} tokens, {counts['rows']:,} rows")
    print(f"{config.output}: {summary.size:,} bytes, root hash {summary.root_hash}, {time.monotonic() - start:.1f} s")
    return 0


def _verify(argv: Sequence[str]) -> int:
    from data_prep.shards import verify

    parser = _parser("verify", "Check every byte and every row of a shard folder.")
    found = verify(parser.parse_args(argv).folder)
    for problem in found.problems:
        print(f"{PROGRAM}: error: {problem}", file=sys.stderr)
    if found.problems:
        return USER_ERROR_EXIT_CODE
    print(f"verified {found.summary}")
    return 0


def _inspect(argv: Sequence[str]) -> int:
    from data_prep.shards import SPLITS, open_shards
    from data_prep.vocabulary import load_tokenizer

    parser = _parser("inspect", "Print rows of a shard folder as text, with their masks.")
    parser.add_argument("--split", default="train", choices=SPLITS, help="default: %(default)s")
    parser.add_argument("--rows", type=int, default=3, help="how many rows; default: %(default)s")
    parser.add_argument("--variant", type=int, default=0, help="which of the maskings; default: %(default)s")
    options = parser.parse_args(argv)
    shards = open_shards(options.folder)
    if not 0 <= options.variant < shards.num_variants:
        raise UserError(f"--variant {options.variant}: the shards hold variants 0 to {shards.num_variants - 1}")
    if options.rows < 1:
        raise UserError(f"--rows {options.rows}: expected 1 or more")
    split = shards.split(options.split)
    tokenizer = load_tokenizer(shards.tokenizer_path)
    print(
        f"{shards.path} {split.name}: {split.num_rows:,} rows of {shards.seq_length} tokens, "
        f"{shards.num_variants} variants of {shards.masked_per_row} masks, root hash {shards.root_hash}"
    )
    print("{house->[MASK]} was masked, {house->tree} replaced, {house=} chosen but kept, | a document's start\n")
    left = options.rows
    for index in range(len(split.chunk_rows)):
        arrays = split.chunk(index)
        for row in range(min(left, len(arrays["lengths"]))):
            print(_row_text(arrays, row, options.variant, tokenizer.id_to_token))
        left -= min(left, len(arrays["lengths"]))
        if not left:
            break
    return 0


def _row_text(arrays: dict[str, np.ndarray], row: int, variant: int, token_of: Callable[[int], str | None]) -> str:
    """One row as text, its masks marked, under a line of its numbers."""
    ids = arrays["input_ids"][row, : arrays["lengths"][row]]
    used = arrays["num_masked"][row, variant]
    positions = arrays["masked_positions"][row, variant, :used].tolist()
    replacements = arrays["replacement_ids"][row, variant, :used].tolist()
    stands = dict(zip(positions, replacements, strict=True))
    bounds = arrays["boundary_offsets"][row : row + 2]
    starts = set(arrays["boundary_positions"][bounds[0] : bounds[1]].tolist())
    words = []
    for position, token in enumerate(ids.tolist()):
        word = str(token_of(token))
        if position in stands:
            same = stands[position] == token
            word = f"{{{word}=}}" if same else f"{{{word}->{token_of(stands[position])}}}"
        elif word.startswith("##") and words:
            words[-1] += word[2:]
            continue
        words.append(f"| {word}" if position in starts else word)
    sequence = int(arrays["sequence_ids"][row])
    head = f"row {sequence >> 32}:{sequence & 0xFFFFFFFF}, {len(ids)} tokens, {used} masked"
    return f"{head}\n{' '.join(words)}\n"


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = Parser(prog=f"{PROGRAM} {command}", description=description)
    parser.add_argument("folder", type=Path, help="the shard folder")
    return parser


class _ProgressBar:
    """A bar on stderr when that is a terminal, silent otherwise."""

    def __enter__(self) -> Callable[[str, int], None]:
        self._bar = None
        self._unit = ""
        return self._update

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _update(self, unit: str, count: int) -> None:
        if not sys.stderr.isatty():
            return
        from tqdm import tqdm

        if self._bar is None or unit != self._unit:
            if self._bar is not None:
                self._bar.close()
            self._bar, self._unit = tqdm(unit=f" {unit}", leave=False), unit
        self._bar.update(count)


if __name__ == "__main__":
    sys.exit(main())
