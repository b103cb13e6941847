"""``narrowbert sync``."""

from collections.abc import Sequence

from data_prep.contract.command_line import Parser, path_argument
from pipeline.commands import COMMANDS


def run(argv: Sequence[str]) -> None:
    """Send what is missing and say so."""
    parser = Parser("narrowbert sync", description=COMMANDS["sync"])
    parser.add_argument("run_dir", type=path_argument)
    arguments = parser.parse_args(argv)
    from pipeline.tracking.shipping import sync

    sync(arguments.run_dir)
    print(f"everything of {arguments.run_dir} is in MLflow")
