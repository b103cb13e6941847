"""The ``narrowbert`` command: finds the command's module in ``pipeline.commands`` and runs it."""

import importlib
import logging
import sys
from collections.abc import Sequence

from data_prep.contract.command_line import choose_command, run_command
from pipeline.commands import COMMANDS, DESCRIPTION, PROGRAM, module_of


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run_command(PROGRAM, _dispatch, sys.argv[1:]))


def _dispatch(argv: Sequence[str]) -> int | None:
    command = choose_command(PROGRAM, DESCRIPTION, COMMANDS, argv)
    # transformers imports torchao where it is installed, which warns of kernels for GPUs that no command uses.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return importlib.import_module(module_of(command)).run(argv[1:])


if __name__ == "__main__":
    main()
