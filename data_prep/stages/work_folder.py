"""The folder that the shards are made in: its plan on disk, and its lock."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.config import PrepConfig
from data_prep.contract.command_line import UserError
from data_prep.contract.shard_format import TOKENIZER, Geometry
from data_prep.corpus.formats.gzip_index import GzipIndex, make_index, needs_index
from data_prep.report.progress import Progress
from data_prep.stages.work_plan import (
    GZIP_INDEXES,
    PLAN,
    Planned,
    SurveyedFile,
    WorkPlan,
    as_json,
    difference,
    identity_hash,
    libraries,
    pinned_configuration,
    tokenizer_bytes,
    work_path,
    write_plan,
)
from data_prep.stages.workers import Workers


def read_plan(config: PrepConfig) -> tuple[WorkPlan, dict[str, Any]]:
    """The plan that ``--task plan`` wrote, if it is of this configuration. The corpus is not looked at: each map task
    compares the files that it reads with the plan.

    Raises:
        UserError: no plan, a damaged one, or one of something else.
    """
    work = work_path(config)
    path = work / PLAN
    try:
        content = json.loads(path.read_text())
        identity = content["identity"]
        plan = WorkPlan(
            work=work,
            hash=identity_hash(identity),
            config=config,
            num_tasks=content["num_tasks"],
            validation_tasks=content.get("validation_tasks", 0),
            total_bytes=content["total_bytes"],
            geometry=Geometry(**content["geometry"]),
            special_ids=content["special_ids"],
        )
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"there is no plan {path}: run the same command with --task plan first") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"the plan {path} is damaged: run the same command with --task plan again") from error
    wanted = {
        "configuration": pinned_configuration(config),
        "tokenizer": {"sha256": hashlib.sha256(tokenizer_bytes(config)).hexdigest()},
        "libraries": libraries(config),
    }
    for part, value in wanted.items():
        if as_json(value) != identity[part]:
            raise UserError(
                f"{path} is the plan of {difference(part, value, identity[part])}: give the configuration it was "
                "made with, or run --task plan again"
            )
    return plan, identity


@contextlib.contextmanager
def locked_work_folder(work: Path, progress: Progress, *, exclusive: bool) -> Iterator[None]:
    """OUTPUT.partial, made if need be and held against other runs while the body runs. Nothing in it is deleted."""
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {work}: {error.strerror}") from error
    handle = os.open(work, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another narrowbert-prep is at work on {work}: wait for it or stop it") from error
        except OSError:  # a file system without locks: the commits by rename still keep results whole
            progress.note(f"{work} cannot be locked here: let no other run work on it")
        yield
    finally:
        os.close(handle)


def prepare_work_folder(planned: Planned, progress: Progress) -> None:
    """Write the plan into its folder, unless it is there. Work of another plan is set aside, never mixed or lost."""
    plan = planned.plan
    found = _hash_of_plan(plan.work)
    if found == plan.hash:
        return
    _set_aside(plan, found, progress)
    aside = _aside(plan.work, plan.hash)
    if _hash_of_plan(aside) == plan.hash:
        for entry in list(aside.iterdir()):
            entry.rename(plan.work / entry.name)
        aside.rmdir()
        progress.note(f"{aside} is of this configuration and corpus: going on from there")
        return
    plan.shards.mkdir(exist_ok=True)
    (plan.shards / TOKENIZER).write_bytes(tokenizer_bytes(plan.config))
    write_plan(planned)


def index_large_files(planned: Planned, workers: Workers, progress: Progress) -> None:
    """Make the indexes that the map tasks of large .gz files need, unless they are there."""
    folder = planned.plan.work / GZIP_INDEXES
    large = [found for found in planned.files if found.whole and needs_index(found.file, found.survey)]
    missing = [(found, folder) for found in large if not GzipIndex(folder, found.survey["sha256"]).exists()]
    if not missing:
        return
    progress.start("index", len(missing), "files")
    for (found, _), made in zip(missing, workers.run(_make_index, missing), strict=True):
        progress.advance(1)
        if not made:
            name = found.file.path or found.file.name
            progress.note(f"{name} gets no index: each process that reads a part of it reads all before that too")


def _make_index(task: tuple[SurveyedFile, Path]) -> bool:
    found, folder = task
    return make_index(found.file, found.survey, folder)


def _hash_of_plan(work: Path) -> str | None:
    try:
        return identity_hash(json.loads((work / PLAN).read_text())["identity"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _aside(work: Path, plan_hash: str) -> Path:
    return work.with_name(f"{work.name}.{plan_hash[:8]}")


def _set_aside(plan: WorkPlan, found: str | None, progress: Progress) -> None:
    """Clear the folder for a new plan: work of another one moves to a folder of its own."""
    entries = list(plan.work.iterdir())
    if not entries:
        return
    kinds = (plan.shards.name, GZIP_INDEXES)
    if not any(path.is_dir() and path.name not in kinds for path in entries):  # a plan that nothing came of
        for entry in entries:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        return
    aside = _aside(plan.work, found or "damaged!")
    aside.mkdir(exist_ok=True)
    for entry in entries:
        entry.rename(aside / entry.name)
    progress.note(
        f"{plan.work} is of another configuration or corpus, or damaged: starting anew. What was there is in {aside}: "
        "delete it, or give that configuration again to go on from there"
    )
