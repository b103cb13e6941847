"""What the tasks commit, where, and which of them are done.

A task reads what earlier ones committed and commits its own result by a rename. It can therefore be killed at any
point, run twice, and run on any machine that sees the work folder:

    map/000003/         a part of the corpus, cleaned and tokenized: tokens.bin and a table of documents
    duplicates/         which documents of every part survive
    pack/000003/        the part's surviving documents as rows
    order/              the rows of a split in their global order
    reduce/00002.json   the manifest's entry of one shard, which stands in the work folder itself

What a task makes follows from the plan and its number alone: workers, machines and order do not matter.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.contract.command_line import UserError
from data_prep.stages.work_plan import WorkPlan

STAGES = ("plan", "map", "duplicates", "pack", "order", "reduce", "finish")
"""The stages in order; each needs all of the one before it."""

ARRAY_STAGES = ("map", "pack", "reduce")
"""Those of many tasks; the others have one."""

RECORD = "record.json"


@contextlib.contextmanager
def committed(folder: Path, plan: WorkPlan, record: dict[str, Any]) -> Iterator[Path]:
    """A temporary folder that becomes ``folder``, with its record, when the body ends well."""
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    (temporary / RECORD).write_text(json.dumps({"plan": plan.hash, **record}, sort_keys=True))
    try:
        temporary.rename(folder)
    except OSError:
        if not (folder / RECORD).is_file():
            raise
        shutil.rmtree(temporary)  # another process has committed the same result meanwhile


def read_record(path: Path, plan: WorkPlan) -> dict[str, Any] | None:
    """The record of a committed task of this plan, or None."""
    try:
        record = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return record if record.get("plan") == plan.hash else None


def map_folder(plan: WorkPlan, index: int) -> Path:
    """Where map task ``index`` commits."""
    return plan.work / "map" / f"{index:06d}"


def pack_folder(plan: WorkPlan, index: int) -> Path:
    """Where pack task ``index`` commits."""
    return plan.work / "pack" / f"{index:06d}"


def reduce_record(plan: WorkPlan, index: int) -> Path:
    """The record of reduce task ``index``."""
    return plan.work / "reduce" / f"{index:05d}.json"


def number_of_tasks(plan: WorkPlan, stage: str) -> int:
    """How many tasks a stage has; those of ``reduce`` are known when ``order`` is done."""
    if stage in ("map", "pack"):
        return len(plan.tasks)
    if stage == "reduce":
        return len(require_record(plan, "order", 0)["tasks"])
    return 1


def task_record(plan: WorkPlan, stage: str, index: int) -> dict[str, Any] | None:
    """The record of a task that is done, or None; a reduce task is done where its shard is there too."""
    if stage == "reduce":
        record = read_record(reduce_record(plan, index), plan)
        if record is None:
            return None
        path = plan.work / record["entry"]["name"]
        return record if path.is_file() and path.stat().st_size == record["entry"]["size"] else None
    if stage in ("map", "pack"):
        folder = (map_folder if stage == "map" else pack_folder)(plan, index)
    else:
        folder = plan.work / stage
    return read_record(folder / RECORD, plan)


def require_record(plan: WorkPlan, stage: str, index: int) -> dict[str, Any]:
    """The record of a task.

    Raises:
        UserError: the task is not done.
    """
    record = task_record(plan, stage, index)
    if record is None:
        raise UserError(f"{stage} task {index} of {plan.work} is not done: run it with --task {stage} --index {index}")
    return record


def require_stage_before(plan: WorkPlan, stage: str) -> None:
    """Raise UserError where a task of the stage before is not done."""
    before = STAGES[STAGES.index(stage) - 1]
    if before == "plan":
        return
    for index in range(number_of_tasks(plan, before)):
        require_record(plan, before, index)
