"""Run by a job of ``narrowbert-submit prep``: this job's block of the tasks of one stage.

Usage: python -m cluster.prep_stage --stage STAGE --part I --parts N CONFIGURATION...
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.elements import tasks_of_element
from data_prep.config import PrepConfig, check_config
from data_prep.contract.command_line import Parser, UserError, read_config, run_command
from data_prep.contract.verification import verify
from data_prep.stages.build import count_tasks, run_task, run_tasks
from data_prep.stages.records import STAGES


class Silence:
    """Takes what a stage tells of its progress: a job's log has the lines of its tasks."""

    def start(self, stage: str, total: int, unit: str) -> None:
        """A stage begins."""

    def advance(self, count: int, documents: int = 0) -> None:
        """So many units are done."""

    def note(self, message: str) -> None:
        """Something the user should know."""
        print(f"narrowbert-prep: {message}", flush=True)


def main() -> None:
    """Entry point of the job's command."""
    sys.exit(run_command("narrowbert-prep", _run, sys.argv[1:]))


def _run(argv: Sequence[str]) -> int:
    parser = Parser(prog="cluster.prep_stage", add_help=False)
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--part", type=int, required=True)
    parser.add_argument("--parts", type=int, required=True)
    options, rest = parser.parse_known_args(argv)
    config = read_config(PrepConfig, rest, "cluster.prep_stage", "One stage's tasks.")
    check_config(config)
    is_there = options.stage == "finish" and (Path(config.output) / "manifest.json").exists()
    if is_there:
        print(f"{config.output} is there: a start before this one was ended while it verified", flush=True)
    elif options.stage in ("plan", "finish"):
        print(run_task(config, options.stage, None, Silence()), flush=True)
    else:
        block = tasks_of_element(count_tasks(config, options.stage), options.part, options.parts)
        print(run_tasks(config, options.stage, block, Silence()), flush=True)
    if options.stage == "finish":
        found = verify(config.output)
        if found.problems:
            raise UserError("; ".join(found.problems))
        print(f"verified {found.summary}", flush=True)
    return 0


if __name__ == "__main__":
    main()
