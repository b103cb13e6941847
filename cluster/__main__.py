"""The ``narrowbert-submit`` command."""

import sys


def main() -> None:
    """Entry point of the console script: submission does not exist yet, and says so."""
    print(
        "narrowbert-submit: error: submission to SLURM does not exist yet; inside your own job script "
        "`srun narrowbert train --config ...` starts one process a task and joins them",
        file=sys.stderr,
    )
    sys.exit(2)


if __name__ == "__main__":
    main()
