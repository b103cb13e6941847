"""Runs a stage in place of ``python -P -m cluster.prep_stage ...``, and does to its tasks what a test asks for.

FAULTS, in the environment as JSON, has any of

- ``"partition_bytes": N``: so small are the map tasks of a small corpus;
- ``"record": FILE``: append a line for each task that ends: stage, number, process, begin and end in seconds;
- ``"pace": S``: each task takes S seconds more;
- ``"slow": {"map-3": S}``: that one alone does;
- ``"poison": {"map-3": "raise" | "kill" | "refuse"}``: that task ends so, each time.

Worker processes are spawned and import this module as their main one, so the faults hold in them as well.
"""

import functools
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster import prep_stage
from data_prep.contract.command_line import UserError
from data_prep.corpus import partitions
from data_prep.stages import build

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
    time.sleep(faults.get("slow", {}).get(f"{stage}-{index}", faults.get("pace", 0)))
    match faults.get("poison", {}).get(f"{stage}-{index}"):
        case "raise":
            raise OverflowError("a poisoned\ndocument")
        case "refuse":
            raise UserError("cannot read the corpus file https://me:hidden@example.invalid/a.jsonl")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
    record = run(plan, index)
    if "record" in faults:
        entry = {"stage": stage, "index": index, "pid": os.getpid(), "begin": begin, "end": time.time()}
        with Path(faults["record"]).open("a") as file:
            file.write(json.dumps(entry) + "\n")
    return record


def _apply(faults: Mapping[str, Any]) -> None:
    partitions.MIN_PARTITION_BYTES = faults.get("partition_bytes", partitions.MIN_PARTITION_BYTES)
    for stage, run in list(build._RUN.items()):
        build._RUN[stage] = functools.partial(_run_task, stage, run, faults)


if VARIABLE in os.environ:
    _apply(json.loads(os.environ[VARIABLE]))

if __name__ == "__main__":
    prep_stage.main()
