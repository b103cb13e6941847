"""Runs a stage in place of ``python -P -m cluster.prep_stage ...``, and does to its tasks what a test asks for.

FAULTS, in the environment as JSON, has any of

- ``"partition_bytes": N``: so small are the map tasks of a small corpus;
- ``"record": FILE``: append a line for each task that ends: stage, number, process, begin and end in seconds;
- ``"meet": FOLDER``: a map task waits until two workers of its element have begun one;
- ``"slow": {"map-3": S}``: that task takes S seconds more;
- ``"poison": {"map-3": "raise" | "kill" | "kill beside" | "refuse"}``: that task ends so, each time; "kill
  beside" where another worker is there;
- ``"requeue": FOLDER``: the first start of each element is put back into the queue while it works: by the first task
  that is done, or where a stage has one task by its begin, and finish in the middle of its clean-up.

Worker processes are spawned and import this module as their main one, so the faults hold in them as well.
"""

import functools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster import prep_stage
from data_prep.config import PrepConfig
from data_prep.contract.command_line import UserError
from data_prep.corpus import partitions
from data_prep.report.log_progress import LogProgress
from data_prep.stages import build, finish
from data_prep.stages.work_plan import work_path

VARIABLE = "NARROWBERT_TEST_FAULTS"


def python_with_faults(path: Path, python: str, faults: Mapping[str, Any]) -> None:
    """Write a program that takes the place of the jobs' Python and runs this module."""
    root = Path(__file__).parents[2]
    path.write_text(
        f"#!/bin/sh\nexport {VARIABLE}='{json.dumps(dict(faults))}' PYTHONPATH='{root}'\nshift 3\n"
        f"exec '{python}' -P -m tests.cluster.faulty_prep \"$@\"\n"
    )
    path.chmod(0o755)


def _run_task(stage: str, run: Callable[[Any, int], Any], faults: Mapping[str, Any], plan: Any, index: int) -> Any:
    begin = time.time()
    time.sleep(faults.get("slow", {}).get(f"{stage}-{index}", 0))
    if "meet" in faults and stage == "map":
        _meet(Path(faults["meet"]))
    match faults.get("poison", {}).get(f"{stage}-{index}"):
        case "raise":
            raise OverflowError("a poisoned\ndocument")
        case "refuse":
            raise UserError("cannot read the corpus file https://me:hidden@example.invalid/a.jsonl")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "kill beside" if _number_of_workers() > 1:
            os.kill(os.getpid(), signal.SIGKILL)
    record = run(plan, index)
    if "record" in faults:
        entry = {"stage": stage, "index": index, "pid": os.getpid(), "begin": begin, "end": time.time()}
        with Path(faults["record"]).open("a") as file:
            file.write(json.dumps(entry) + "\n")
    return record


def _meet(folder: Path) -> None:
    element, deadline = os.environ["SLURM_ARRAY_TASK_ID"], time.monotonic() + 60
    (folder / f"{element}-{os.getpid()}").touch()
    while len(list(folder.glob(f"{element}-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)


def _number_of_workers() -> int:
    children = Path(f"/proc/{os.getppid()}/task/{os.getppid()}/children").read_text().split()
    return sum(b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes() for child in children)


def _requeue_once(folder: Path, stage: str) -> None:
    element = os.environ.get("SLURM_ARRAY_TASK_ID")
    try:
        (folder / f"{stage}-{element or 0}").touch(exist_ok=False)
    except FileExistsError:
        return
    job_id = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{element}" if element else os.environ["SLURM_JOB_ID"]
    subprocess.run(["scontrol", "requeue", job_id], check=True, timeout=30)
    time.sleep(60)  # Slurm ends this process here


def _requeue_each_stage(folder: Path) -> None:
    start, advance, clear_away = LogProgress.start, LogProgress.advance, finish.clear_away
    stage_of: dict[LogProgress, str] = {}

    def start_and_requeue(progress: LogProgress, stage: str, total: int, unit: str, done: int = 0) -> None:
        start(progress, stage, total, unit, done)
        stage_of[progress] = stage
        if total == 1 and stage not in ("finish", "verify"):
            _requeue_once(folder, stage)

    def advance_and_requeue(progress: LogProgress, count: int, documents: int = 0) -> None:
        advance(progress, count, documents)
        if stage_of[progress] not in ("finish", "verify"):
            _requeue_once(folder, stage_of[progress])

    def clear_some_away(config: PrepConfig) -> None:
        work = work_path(config)
        shutil.rmtree(work / "map", ignore_errors=True)
        (work / "plan.json").unlink(missing_ok=True)
        _requeue_once(folder, "finish")
        clear_away(config)

    LogProgress.start = start_and_requeue
    LogProgress.advance = advance_and_requeue
    finish.clear_away = build.clear_away = clear_some_away


def _apply(faults: Mapping[str, Any]) -> None:
    partitions.MIN_PARTITION_BYTES = faults.get("partition_bytes", partitions.MIN_PARTITION_BYTES)
    if "requeue" in faults:
        _requeue_each_stage(Path(faults["requeue"]))
    for stage, run in list(build._RUN.items()):
        build._RUN[stage] = functools.partial(_run_task, stage, run, faults)


if VARIABLE in os.environ:
    _apply(json.loads(os.environ[VARIABLE]))

if __name__ == "__main__":
    prep_stage.main()
