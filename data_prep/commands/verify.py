"""``narrowbert-prep verify``: check every byte and every row of a shard folder."""

import sys
from collections.abc import Sequence

from data_prep.commands.arguments import PROGRAM, folder_parser
from data_prep.contract.command_line import USER_ERROR_EXIT_CODE


def run(argv: Sequence[str]) -> int:
    """Print what is wrong with a folder, or that it is sound; the exit code."""
    from data_prep.contract.verification import verify

    parser = folder_parser("verify", "Check every byte and every row of a shard folder.")
    found = verify(parser.parse_args(argv).folder)
    for problem in found.problems:
        print(f"{PROGRAM}: error: {problem}", file=sys.stderr)
    if found.problems:
        return USER_ERROR_EXIT_CODE
    print(f"verified {found.summary}")
    return 0
