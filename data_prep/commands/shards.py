"""``narrowbert-prep shards``: tokenize, pack and mask a corpus into a shard folder."""

import time
from collections.abc import Sequence

from data_prep.commands.arguments import PROGRAM, prep_config, print_summary
from data_prep.commands.terminal_progress import TerminalProgress
from data_prep.contract.command_line import Parser, UserError

_DESCRIPTION = """Tokenize, pack and mask the corpus into a shard folder. On a cluster, the same command
with --task plan, then map, duplicates, survivors, pack, order, reduce and finish, each after the one before it has
ended, and lines and repeated before map where filters.repeated_lines.across_documents is on;
--index N runs one task of a stage, on any machine that sees the output."""


def run(argv: Sequence[str]) -> int:
    """Make a shard folder, or run one task of it; the exit code."""
    from data_prep.stages.build import build_shards, run_task
    from data_prep.stages.records import ALL_STAGES, stages_of

    parser = Parser(prog=f"{PROGRAM} shards", add_help=False)
    parser.add_argument("--task", choices=ALL_STAGES)
    parser.add_argument("--index", type=int)
    options, rest = parser.parse_known_args(argv)
    config = prep_config(rest, "shards", _DESCRIPTION)
    if options.index is not None and options.task in (None, "plan", "finish"):
        *others, last = stages_of(config)[1:-1]
        raise UserError(f"--index goes with --task {', '.join(others)} or {last}")
    start = time.monotonic()
    with TerminalProgress() as progress:
        if options.task:
            try:
                line = run_task(config, options.task, options.index, progress)
            except OSError as error:
                raise UserError(
                    f"cannot write the shards {config.output}: {error}; the same command goes on from here"
                ) from error
            print(f"{line}, {time.monotonic() - start:.1f} s")
            return 0
        summary = build_shards(config, progress)
    print_summary(config.output, summary, time.monotonic() - start)
    return 0
