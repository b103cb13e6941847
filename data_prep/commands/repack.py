"""``narrowbert-prep repack``: the documents of a shard folder in other rows."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from data_prep.commands.arguments import PROGRAM, prep_config, print_summary
from data_prep.commands.terminal_progress import TerminalProgress
from data_prep.config import PrepConfig
from data_prep.contract.command_line import UserError, path_or_url_argument

if TYPE_CHECKING:
    from data_prep.contract.shards import ShardFolder
    from data_prep.report.progress import Progress
    from data_prep.stages.finish import Summary

_DESCRIPTION = """Make a shard folder of the documents of another one, which was made with
--keep_documents true, in rows of another length, packing, mask or seed. Nothing is tokenized again."""


def run(argv: Sequence[str]) -> int:
    """Make a shard folder out of another one; the exit code."""
    from data_prep.reuse.kept_documents import repack

    return make_of_documents(repack, argv, "repack", _DESCRIPTION)


def make_of_documents(
    make: "Callable[[ShardFolder, PrepConfig, Progress], Summary]", argv: Sequence[str], command: str, description: str
) -> int:
    """Run a command that makes a shard folder out of the documents that another one has kept; the exit code.

    Raises:
        UserError: the folder is not named first, has kept no documents, or an option is wrong.
    """
    from data_prep.reuse.kept_documents import configuration_options, open_kept

    if not argv or argv[0].startswith("-"):
        if "--help" in argv:
            prep_config(argv, f"{command} SHARDS", description)
        raise UserError(f"{command} needs the shard folder first: {PROGRAM} {command} SHARDS --output NEW")
    start = time.monotonic()
    parent = open_kept(path_or_url_argument(argv[0]))
    config = prep_config([*configuration_options(parent), *argv[1:]], f"{command} SHARDS", description)
    with TerminalProgress() as progress:
        summary = make(parent, config, progress)
    print_summary(config.output, summary, time.monotonic() - start)
    return 0
