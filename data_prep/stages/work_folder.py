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
from data_prep.contract.files import write_atomically
from data_prep.contract.shard_format import TOKENIZER
from data_prep.corpus.documents import CorpusFile
from data_prep.corpus.files import find_corpus_files
from data_prep.corpus.surveys import survey
from data_prep.report.progress import Progress
from data_prep.stages.work_plan import (
    WorkPlan,
    as_json,
    build_plan,
    difference,
    identity_hash,
    libraries,
    pinned_configuration,
    tokenizer_bytes,
)

PLAN = "plan.json"


def read_plan(config: PrepConfig) -> tuple[WorkPlan, dict[str, Any]]:
    """The plan that ``--task plan`` wrote, if it is of this configuration and of these files."""
    path = Path(f"{config.output.rstrip('/')}.partial", PLAN)
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"there is no plan {path}: run the same command with --task plan first") from error
    except ValueError as error:
        raise UserError(f"the plan {path} is damaged: run the same command with --task plan again") from error
    identity = content["identity"]
    files = find_corpus_files(config.corpus)
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
    for file, found, stamp in zip(files, identity["inputs"], content["stamps"], strict=False):
        changed = file.name != found["name"] or (
            _stamp(file) != stamp and as_json(survey(file, config.corpus)) != found
        )
        if changed:
            raise UserError(f"corpus file {file.path or file.name} is not what it was when {path} was made")
    if len(files) != len(identity["inputs"]):
        raise UserError(f"the corpus has {len(files)} files instead of the {len(identity['inputs'])} of {path}")
    return build_plan(config, files, identity), identity


def _stamp(file: CorpusFile) -> list[int] | None:
    """Size and time of change of a local file: where they are as planned, its content need not be read again."""
    if file.path is None or "://" in file.path:
        return None
    status = Path(file.path).stat()
    return [status.st_size, status.st_mtime_ns]


@contextlib.contextmanager
def work_folder(plan: WorkPlan, identity: dict[str, Any], progress: Progress, *, exclusive: bool) -> Iterator[None]:
    """OUTPUT.partial of this plan, held against other runs while the body runs."""
    work = plan.work
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
        _prepare_work_folder(plan, identity, progress)
        try:
            yield
        except UserError:
            if exclusive:
                shutil.rmtree(work, ignore_errors=True)
            raise
    finally:
        os.close(handle)


def _prepare_work_folder(plan: WorkPlan, identity: dict[str, Any], progress: Progress) -> None:
    path = plan.work / PLAN
    try:
        found = identity_hash(json.loads(path.read_text())["identity"])
    except (FileNotFoundError, ValueError, KeyError):
        found = None
    if found == plan.hash:
        return
    if any(plan.work.iterdir()):
        progress.note(f"{plan.work} is of another configuration or corpus, or damaged: starting anew")
        for entry in list(plan.work.iterdir()):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    (plan.work / TOKENIZER).write_bytes(tokenizer_bytes(plan.config))
    content = {"identity": identity, "stamps": [_stamp(file) for file in plan.files]}
    write_atomically(path, json.dumps(content, sort_keys=True))
