"""``narrowbert checkpoints``."""

from collections.abc import Sequence

from data_prep.contract.command_line import Parser, UserError, path_argument
from pipeline.commands import COMMANDS


def run(argv: Sequence[str]) -> None:
    """Print the list."""
    parser = Parser("narrowbert checkpoints", description=COMMANDS["checkpoints"])
    parser.add_argument("run_dir", type=path_argument)
    arguments = parser.parse_args(argv)
    from pipeline.checkpoints.listing import list_checkpoints

    checkpoints = list_checkpoints(arguments.run_dir)
    print(checkpoints.table)
    if checkpoints.problem:
        raise UserError(checkpoints.problem)
