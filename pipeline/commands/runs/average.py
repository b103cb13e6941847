"""``narrowbert average``."""

from collections.abc import Sequence

from data_prep.contract.command_line import Parser, path_argument, path_or_url_argument
from pipeline.commands import COMMANDS


def run(argv: Sequence[str]) -> None:
    """Write the folder and print what went in."""
    parser = Parser("narrowbert average", description=COMMANDS["average"])
    parser.add_argument("runs", nargs="+", type=path_or_url_argument, metavar="RUN", help="RUN_DIR, or RUN_DIR@STEP")
    parser.add_argument(
        "--last", type=int, metavar="N", help="newest checkpoints of each RUN (default: one of each of several)"
    )
    parser.add_argument("--output", type=path_argument, required=True, help="new folder to write")
    arguments = parser.parse_args(argv)
    from pipeline.initialisation.averaging import average_runs

    for line in average_runs(arguments.runs, arguments.output, arguments.last):
        print(line)
    print(f"{arguments.output} is their average: narrowbert evaluate, export and --init.from_run take it like a run")
