"""What the tasks commit, where, and which of them are done.

A task reads what earlier ones committed and commits its own result by a rename. It can therefore be killed at any
point, run twice, and run on any machine that sees the work folder, OUTPUT.partial:

    lines/000003/               the lines of a part of the corpus (with filters.repeated_lines.across_documents)
    repeated/000000/            which of them stand in an earlier part (likewise)
    map/000003/                 a part of the corpus, cleaned and tokenized: tokens, documents, keys, rejects
    duplicates/000000/          which documents of a range of the keys' hash do not survive
    survivors/000000/           which near-duplicates do not
    pack/000003/                the part's surviving documents as rows, in the order of their shuffle
    order/000000/               where in that order each shard begins
    reduce/000002/              the entries of the shards of a range of the order
    shards/                     the folder that becomes OUTPUT

What a task makes follows from the plan and its number alone: workers, machines and order do not matter.
Everything is on disk before it is committed, and its record holds size and hash of each file. A result that is found
damaged, as after a power cut, is set aside and made again.
"""

import contextlib
import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import xxhash

from data_prep.config import PrepConfig
from data_prep.contract.command_line import UserError
from data_prep.contract.files import flush_to_disk, write_atomically
from data_prep.contract.shard_format import SPLITS
from data_prep.filters.exact_duplicates import KEY
from data_prep.filters.near_duplicates import BAND_KEY, band_count
from data_prep.report.statistics import counts_by_source, merge
from data_prep.stages.work_plan import WorkPlan

STAGES = ("plan", "map", "duplicates", "survivors", "pack", "order", "reduce", "finish")
"""The stages in order; each needs all of the one before it."""

ALL_STAGES = (STAGES[0], "lines", "repeated", *STAGES[1:])
"""The stages in order, with those of ``filters.repeated_lines.across_documents``."""

ARRAY_STAGES = ("lines", "repeated", "map", "duplicates", "pack", "reduce")
"""Those of many tasks."""

RECORD = "record.json"

MIN_RANGE_BYTES = 1 << 16
"""Bytes that a task reads of one file at once on average, so that opening files never costs more than reading."""

MAX_ENTRIES = 1 << 23
"""Entries of a table that one task looks at, if MAX_RANGES allows: it keeps some 100 bytes for each duplicate."""

MAX_RANGES = 512
"""Tasks that share out a range of hashes: each of them opens a file of every part of the corpus."""


class DamagedTask(UserError):
    """The result of a finished task is not what it was. It has been set aside, so that the task can run again."""

    def __init__(self, message: str, stage: str, index: int) -> None:
        super().__init__(message, stage, index)  # all of it, so that a worker process can hand it on
        self.stage = stage
        self.index = index

    def __str__(self) -> str:
        return self.args[0]


def stages_of(config: PrepConfig) -> tuple[str, ...]:
    """The stages of a preparation in their order."""
    return ALL_STAGES if config.filters.repeated_lines.across_documents else STAGES


def task_folder(plan: WorkPlan, stage: str, index: int) -> Path:
    """Where a task commits."""
    return plan.work / stage / f"{index:06d}"


def unique_name(name: str) -> str:
    """A name that no other process uses, on any machine: process ids alone repeat between machines and containers."""
    return f"{name}.{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.partial"


@contextlib.contextmanager
def committed(plan: WorkPlan, stage: str, index: int, record: dict[str, Any]) -> Iterator[Path]:
    """A temporary folder that becomes the task's, with its record, when the body ends well."""
    folder = task_folder(plan, stage, index)
    temporary = folder.with_name(unique_name(folder.name))
    temporary.mkdir(parents=True)
    try:
        yield temporary
        content = {**record, "plan": plan.hash, "files": sizes_and_hashes(temporary)}
        (temporary / RECORD).write_text(json.dumps(content, sort_keys=True))
        for path in [*temporary.iterdir(), temporary]:
            flush_to_disk(path)
        _put_in_place(plan, stage, index, temporary)
        flush_to_disk(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(plan: WorkPlan, stage: str, index: int, temporary: Path) -> None:
    folder = task_folder(plan, stage, index)
    for _ in range(2):
        try:
            temporary.rename(folder)
            return
        except OSError:
            if not folder.exists():
                raise
        if task_record(plan, stage, index) is not None:
            return  # another process has committed the same result meanwhile
        set_aside(plan, stage, index)
    raise OSError(f"{folder} cannot be replaced")


def set_aside(plan: WorkPlan, stage: str, index: int) -> None:
    """Take away what a task committed, so that it counts as not done."""
    folder = task_folder(plan, stage, index)
    away = folder.with_name(unique_name(f"{folder.name}.damaged"))
    with contextlib.suppress(FileNotFoundError):  # another process has done so
        folder.rename(away)
        shutil.rmtree(away, ignore_errors=True)


def sizes_and_hashes(folder: Path) -> dict[str, Any]:
    """Name of a file -> its size and hash (xxh3), of all files in a folder."""
    return {path.name: _size_and_hash(path) for path in sorted(folder.iterdir())}


def _size_and_hash(path: Path) -> dict[str, Any]:
    digest = xxhash.xxh3_64()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return {"size": path.stat().st_size, "xxh3": digest.hexdigest()}


def task_record(plan: WorkPlan, stage: str, index: int) -> dict[str, Any] | None:
    """The record of a task of this plan that is done, or None; its files are there in their sizes."""
    folder = task_folder(plan, stage, index)
    try:
        record = json.loads((folder / RECORD).read_text())
        sizes = {name: (folder / name).stat().st_size for name in record["files"]}
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
    if record.get("plan") != plan.hash:
        return None
    if sizes != {name: file["size"] for name, file in record["files"].items()}:
        return None
    if stage == "reduce" and not all(_is_there(plan, entry) for entry in record["entries"]):
        return None
    return record


def _is_there(plan: WorkPlan, entry: dict[str, Any]) -> bool:
    path = plan.shards / entry["name"]
    return path.is_file() and path.stat().st_size == entry["size"]


def require_record(plan: WorkPlan, stage: str, index: int) -> dict[str, Any]:
    """The record of a task.

    Raises:
        DamagedTask: it is done, and a file of it is gone or cut short.
        UserError: it is not done.
    """
    record = task_record(plan, stage, index)
    if record is None:
        if task_folder(plan, stage, index).exists():
            damaged(plan, stage, index, "a file is missing or has another size")
        raise UserError(f"{stage} task {index} of {plan.work} is not done: run it with --task {stage} --index {index}")
    return record


def damaged(plan: WorkPlan, stage: str, index: int, problem: str) -> NoReturn:
    """Set a task's result aside and raise DamagedTask."""
    set_aside(plan, stage, index)
    message = f"{stage} task {index} of {plan.work} is damaged ({problem}): the same command makes it again"
    raise DamagedTask(message, stage, index)


def checked_folder(plan: WorkPlan, stage: str, index: int, *names: str) -> Path:
    """The folder of a task, of which these files, or all, are to the byte what was committed.

    Raises:
        DamagedTask: they are not.
    """
    record, folder = require_record(plan, stage, index), task_folder(plan, stage, index)
    for name in names or record["files"]:
        if _size_and_hash(folder / name) != record["files"][name]:
            damaged(plan, stage, index, f"{name} has another hash")
    return folder


def number_of_tasks(plan: WorkPlan, stage: str) -> int:
    """How many tasks a stage has; those of ``repeated`` are known after ``lines``, of ``duplicates`` after ``map``, of
    ``reduce`` after ``order``."""
    if stage in ("lines", "map", "pack"):
        return plan.num_tasks
    if stage == "repeated":
        return summary_of(plan, "lines")["repeated_tasks"]
    if stage == "duplicates":
        return sum(summary_of(plan, "map")["duplicates_tasks"])
    if stage == "reduce":
        return len(require_record(plan, "order", 0)["tasks"])
    return 1


def records_of(plan: WorkPlan, stage: str) -> Iterator[dict[str, Any]]:
    """The records of all tasks of a stage.

    Raises:
        UserError: one is not done, or damaged.
    """
    return (require_record(plan, stage, index) for index in range(number_of_tasks(plan, stage)))


def require_stage_before(plan: WorkPlan, stage: str) -> None:
    """Raise UserError where a task of the stage before is not done."""
    stages = stages_of(plan.config)
    before = stages[stages.index(stage) - 1]
    if before != "plan":
        summary_of(plan, before)


def _lines_summary(plan: WorkPlan, records: Iterator[dict[str, Any]]) -> dict[str, Any]:
    lines = [record["lines"] for record in records]
    return {"lines": lines, "repeated_tasks": max(1, range_tasks(sum(lines), KEY.itemsize, plan.num_tasks))}


def _map_summary(plan: WorkPlan, records: Iterator[dict[str, Any]]) -> dict[str, Any]:
    documents: list[int] = []
    sources: dict[str, Any] = {}
    for record in records:
        documents.append(record["documents"])
        sources = merge([sources, counts_by_source(record)])
    duplicates = plan.config.duplicates
    keys = sum(documents)
    bands = keys * band_count(duplicates.near_threshold, duplicates.near_characters)
    tasks = [
        range_tasks(keys, KEY.itemsize, plan.num_tasks) if plan.compares_texts else 0,
        range_tasks(bands, BAND_KEY.itemsize, plan.num_tasks),
    ]
    return {"sources": sources, "documents": documents, "duplicates_tasks": tasks}


def range_tasks(entries: int, size: int, num_tasks: int) -> int:
    """How many tasks share out the tables of ``num_tasks`` map tasks, in all so many entries of ``size`` bytes.

    So many that what a task reads of a map task is worth opening it, or that what it finds fits into memory.
    """
    worth_opening = entries * size // (num_tasks * MIN_RANGE_BYTES)
    return min(MAX_RANGES, max(1, worth_opening, entries // MAX_ENTRIES)) if entries else 0


def _pack_summary(_: WorkPlan, records: Iterator[dict[str, Any]]) -> dict[str, Any]:
    rows: dict[str, list[int]] = {split: [] for split in SPLITS}
    total: dict[str, Any] = {}
    for record in records:
        for split in SPLITS:
            rows[split].append(record["rows"][split])
        names = ("documents", "tokens", "dropped_tokens", "sources", "statistics")
        total = merge([total, {key: record[key] for key in names}])
    return {**total, "rows": rows}


def _other_summary(_: WorkPlan, records: Iterator[dict[str, Any]]) -> dict[str, Any]:
    return {"tasks": sum(1 for _ in records)}


_SUMMARIES = {"lines": _lines_summary, "map": _map_summary, "pack": _pack_summary}


def summary_of(plan: WorkPlan, stage: str) -> dict[str, Any]:
    """What later stages need of all records of a finished stage together.

    The first to ask reads every record and leaves the sum beside them; a task that starts later reads one file.

    Raises:
        UserError: a task of the stage is not done.
    """
    path = plan.work / stage / "totals.json"
    try:
        status = path.stat()
        found = _read_summary(path, status.st_mtime_ns, status.st_ino)
        if found["plan"] == plan.hash:
            return found
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass
    summary = {"plan": plan.hash, **_SUMMARIES.get(stage, _other_summary)(plan, records_of(plan, stage))}
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, json.dumps(summary))
    return summary


@lru_cache(maxsize=4)
def _read_summary(path: Path, _mtime_ns: int, _inode: int) -> dict[str, Any]:
    """Once for each process, not for each task: it has a number for every map task."""
    return json.loads(path.read_text())


def document_starts(plan: WorkPlan) -> np.ndarray:
    """[map tasks + 1] i64, the number in the whole corpus of the first document of each map task, and their sum."""
    summary = summary_of(plan, "map")
    key = "starts"  # beside what was read, for as long as that is remembered
    if key not in summary:
        summary[key] = np.cumsum([0, *summary["documents"]], dtype=np.int64)
    return summary[key]
