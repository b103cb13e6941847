"""Runs a rank under srun in place of ``python -P -m pipeline train ...``: a steady pace, and a record of its rows.

The pace keeps a small run alive for as long as a test needs, on fast machines too. The record is that of
tests/faults/inject.py, in the file that NARROWBERT_TEST_ROWS names.
"""

import os
import sys

from pipeline import __main__ as command
from tests.faults import inject

SECONDS_A_STEP = float(os.environ.get("NARROWBERT_TEST_PACE", "0.05"))


def main() -> None:
    # inject.py reads the rank where torchrun leaves it; the trainer must not find it there.
    os.environ["RANK"] = os.environ["SLURM_PROCID"]
    inject.record({"file": os.environ["NARROWBERT_TEST_ROWS"]})
    del os.environ["RANK"]
    inject.slow({"seconds": SECONDS_A_STEP})
    sys.argv = ["narrowbert", *sys.argv[sys.argv.index("train") :]]
    command.main()


if __name__ == "__main__":
    main()
