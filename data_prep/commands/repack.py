"""``narrowbert-prep repack``: the documents of a shard folder in other rows."""

import time
from collections.abc import Sequence

from data_prep.commands.arguments import PROGRAM, prep_config, print_summary
from data_prep.commands.terminal_progress import TerminalProgress
from data_prep.contract.command_line import UserError

_DESCRIPTION = """Make a shard folder of the documents of another one, which was made with
--keep_documents true, in rows of another length, packing, mask or seed. Nothing is tokenized again."""


def run(argv: Sequence[str]) -> int:
    """Make a shard folder out of another one; the exit code."""
    from data_prep.reuse.kept_documents import configuration_options, open_kept, repack

    if not argv or argv[0].startswith("-"):
        if "--help" in argv:
            prep_config(argv, "repack SHARDS", _DESCRIPTION)
        raise UserError(f"repack needs the shard folder first: {PROGRAM} repack SHARDS --output NEW")
    start = time.monotonic()
    parent = open_kept(argv[0])
    config = prep_config([*configuration_options(parent), *argv[1:]], "repack SHARDS", _DESCRIPTION)
    with TerminalProgress() as progress:
        summary = repack(parent, config, progress)
    print_summary(config.output, summary, time.monotonic() - start)
    return 0
