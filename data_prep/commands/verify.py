"""``narrowbert-prep verify``: check every byte and every row of a shard folder."""

import re
import sys
from collections.abc import Sequence

from data_prep.commands.arguments import PROGRAM, folder_parser
from data_prep.contract.command_line import USER_ERROR_EXIT_CODE, UserError


def run(argv: Sequence[str]) -> int:
    """Print what is wrong with a folder, or that it is sound; the exit code."""
    from data_prep.verification.folder import verify

    parser = folder_parser("verify", "Check every byte and every row of a shard folder.")
    parser.add_argument("--num_workers", type=int, default=0, help="processes; 0, the default, is one for each core")
    parser.add_argument(
        "--part", default="1/1", help="such as 3/8: the third of eight parts, which together are the whole check"
    )
    options = parser.parse_args(argv)
    found = verify(options.folder, num_workers=options.num_workers, part=_part(options.part))
    for problem in found.problems:
        print(f"{PROGRAM}: error: {problem}", file=sys.stderr)
    if found.problems:
        return USER_ERROR_EXIT_CODE
    print(f"verified {found.summary}")
    return 0


def _part(text: str) -> tuple[int, int]:
    numbers = re.fullmatch(r"([0-9]{1,9})/([1-9][0-9]{0,8})", text)
    if numbers is None:
        raise UserError(f"--part {text}: expected two numbers such as 3/8")
    return int(numbers[1]), int(numbers[2])
