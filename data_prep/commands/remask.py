"""``narrowbert-prep remask``: the rows of a shard folder with other masks."""

import time
from collections.abc import Sequence

from data_prep.commands.arguments import PROGRAM, print_summary
from data_prep.commands.terminal_progress import TerminalProgress
from data_prep.config import RemaskConfig
from data_prep.contract.command_line import UserError, path_or_url_argument, read_config

_DESCRIPTION = """Make a shard folder of the rows of another one, in the same order, with other masks:
the tars that narrowbert-prep shards makes with the same seed. Neither text nor tokens are needed. What was killed goes
on where it stood."""


def run(argv: Sequence[str]) -> int:
    """Make a shard folder out of another one; the exit code."""
    from data_prep.reuse.remask import mask_options, remask

    program = f"{PROGRAM} remask SHARDS"
    if "--help" in argv:
        read_config(RemaskConfig, ["--help"], program, _DESCRIPTION)
    if not argv or argv[0].startswith("-"):
        raise UserError(f"remask needs the shard folder first: {program} --output NEW")
    start = time.monotonic()
    folder = path_or_url_argument(argv[0])
    config = read_config(RemaskConfig, [*mask_options(folder), *argv[1:]], program, _DESCRIPTION)
    with TerminalProgress() as progress:
        summary = remask(folder, config, progress)
    print_summary(config.output, summary, time.monotonic() - start)
    return 0
