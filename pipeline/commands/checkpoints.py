"""``narrowbert checkpoints``."""

from collections.abc import Sequence
from pathlib import Path

from data_prep.contract.command_line import Parser
from pipeline.commands import COMMANDS


def run(argv: Sequence[str]) -> None:
    """Print the list."""
    parser = Parser("narrowbert checkpoints", description=COMMANDS["checkpoints"])
    parser.add_argument("run_dir", type=Path)
    arguments = parser.parse_args(argv)
    from pipeline.checkpoints.listing import list_checkpoints

    print(list_checkpoints(arguments.run_dir))
