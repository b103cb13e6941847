"""What `narrowbert-prep shards` is going to do, from configuration and corpus alone, and the folder it does it in."""

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from data_prep.config import PrepConfig, chunk_rows, masked_per_row, tokenizer_path
from data_prep.contract.command_line import UserError, config_as_dict
from data_prep.contract.shards import TOKENIZER, Geometry
from data_prep.contract.tokenizer import continues_word, load_tokenizer, special_ids, vocabulary_size
from data_prep.corpus.documents import Partition, Source
from data_prep.corpus.sources import find_sources, fingerprint, partition_bytes, plan_partitions
from data_prep.filters.duplicates import near_signature
from data_prep.stages.plan import Plan
from data_prep.stages.tasks import evaluation_sources
from data_prep.stages.workers import Workers

PLAN = "plan.json"


class Progress(Protocol):
    """Told how the work goes on."""

    def start(self, stage: str, total: int, unit: str) -> None:
        """A stage begins, with so many units of work."""
        ...

    def advance(self, count: int, documents: int = 0) -> None:
        """So many units are done, and with them so many documents."""
        ...

    def note(self, message: str) -> None:
        """Something the user should know."""
        ...


def make_plan(config: PrepConfig, workers: Workers, progress: Progress) -> tuple[Plan, dict[str, Any]]:
    """The plan and what it follows from: configuration, tokenizer and inputs."""
    tokenizer = hashlib.sha256(_tokenizer_bytes(config)).hexdigest()  # first: it is missing more often than a file
    sources = find_sources(config.corpus)
    evaluation = evaluation_sources(config)
    progress.start("read", len(sources) + len(evaluation), "files")
    prints = []
    for found in workers.run(_fingerprint, [(source, config) for source in [*sources, *evaluation]]):
        prints.append(found)
        progress.advance(1)
    identity = {
        "configuration": _pinned_configuration(config),
        "inputs": prints[: len(sources)],
        "evaluation_inputs": prints[len(sources) :],
        "tokenizer": {"sha256": tokenizer},
        "libraries": _libraries(config),
    }
    return _plan(config, sources, identity), identity


def _fingerprint(task: tuple[Source, PrepConfig]) -> dict[str, Any]:
    return fingerprint(task[0], task[1].corpus)


def _plan(config: PrepConfig, sources: Sequence[Source], identity: dict[str, Any]) -> Plan:
    tokenizer = load_tokenizer(tokenizer_path(config), config.vocabulary)
    if config.mask.unit != "token":
        continues_word(tokenizer)  # refuses, before any work, a tokenizer that does not tell words
    output = Path(config.output)
    tasks = _map_tasks(plan_partitions(sources, identity["inputs"]), identity["inputs"])
    return Plan(
        work=output.with_name(output.name + ".partial").absolute(),
        hash=_identity_hash(identity),
        config=config,
        sources=tuple(sources),
        tasks=tuple(tuple(partition for partition, _ in task) for task in tasks),
        task_bytes=tuple(sum(size for _, size in task) for task in tasks),
        geometry=Geometry(
            seq_length=config.seq_length,
            masked_per_row=masked_per_row(config),
            num_variants=config.mask.variants,
            vocab_size=vocabulary_size(tokenizer),
        ),
        special_ids=special_ids(tokenizer),
    )


def _map_tasks(partitions: Sequence[Partition], inputs: Sequence[dict[str, Any]]) -> list[list[tuple[Partition, int]]]:
    """Partitions with their bytes, task by task: consecutive small files go into one task."""
    limit = partition_bytes(sum(found["bytes"] for found in inputs))
    tasks: list[list[tuple[Partition, int]]] = []
    filled = 0
    for partition in partitions:
        found = inputs[partition.source]
        size = round(found["bytes"] * (partition.end - partition.begin) / max(found["units"], 1))
        if not tasks or filled + size > limit:
            tasks.append([])
            filled = 0
        tasks[-1].append((partition, size))
        filled += size
    return tasks


def _identity_hash(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _tokenizer_bytes(config: PrepConfig) -> bytes:
    """The tokenizer.json that goes into the folder."""
    path = Path(tokenizer_path(config))
    tokenizer = load_tokenizer(path, config.vocabulary)
    return tokenizer.to_str(pretty=True).encode() if path.suffix == ".txt" else path.read_bytes()


def _libraries(config: PrepConfig) -> dict[str, str]:
    names = ["narrowbert", "charset-normalizer", "numpy", "pyarrow", "safetensors", "tokenizers", "xxhash"]
    if config.duplicates.near_threshold is not None:
        near_signature("")  # refuses, before any work, where the library is missing
        names.append("datasketch")
    return {name: importlib.metadata.version(name) for name in names}


def _pinned_configuration(config: PrepConfig) -> dict[str, Any]:
    """What decides the bytes: not where things lie nor who makes them, and defaults resolved.

    The vocabulary's configuration is left out since the tokenizer itself is pinned.
    """
    content = config_as_dict(dataclasses.replace(config, chunk_rows=chunk_rows(config)))
    content["mask"]["per_row"] = masked_per_row(config)
    for name in ("output", "tokenizer", "num_workers", "vocabulary"):
        del content[name]
    del content["corpus"]["paths"]
    del content["duplicates"]["evaluation_paths"]
    return content


def read_plan(config: PrepConfig) -> tuple[Plan, dict[str, Any]]:
    """The plan that `--task plan` wrote, if it is of this configuration and of these files."""
    path = Path(f"{config.output.rstrip('/')}.partial", PLAN)
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"there is no plan {path}: run the same command with --task plan first") from error
    except ValueError as error:
        raise UserError(f"the plan {path} is damaged: run the same command with --task plan again") from error
    identity = content["identity"]
    sources = find_sources(config.corpus)
    wanted = {
        "configuration": _pinned_configuration(config),
        "tokenizer": {"sha256": hashlib.sha256(_tokenizer_bytes(config)).hexdigest()},
        "libraries": _libraries(config),
    }
    for part, value in wanted.items():
        if as_json(value) != identity[part]:
            raise UserError(
                f"{path} is the plan of {difference(part, value, identity[part])}: give the configuration it was "
                "made with, or run --task plan again"
            )
    for source, found, stamp in zip(sources, identity["inputs"], content["stamps"], strict=False):
        changed = source.name != found["name"] or (
            _stamp(source) != stamp and as_json(fingerprint(source, config.corpus)) != found
        )
        if changed:
            raise UserError(f"corpus file {source.path or source.name} is not what it was when {path} was made")
    if len(sources) != len(identity["inputs"]):
        raise UserError(f"the corpus has {len(sources)} files instead of the {len(identity['inputs'])} of {path}")
    return _plan(config, sources, identity), identity


def _stamp(source: Source) -> list[int] | None:
    """Size and time of change of a local file: where they are as planned, its content need not be read again."""
    if source.path is None or "://" in source.path:
        return None
    status = os.stat(source.path)
    return [status.st_size, status.st_mtime_ns]


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


@contextlib.contextmanager
def work_folder(plan: Plan, identity: dict[str, Any], progress: Progress, *, exclusive: bool) -> Iterator[None]:
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


def _prepare_work_folder(plan: Plan, identity: dict[str, Any], progress: Progress) -> None:
    path = plan.work / PLAN
    try:
        found = _identity_hash(json.loads(path.read_text())["identity"])
    except (FileNotFoundError, ValueError, KeyError):
        found = None
    if found == plan.hash:
        return
    if any(plan.work.iterdir()):
        progress.note(f"{plan.work} is of another configuration or corpus, or damaged: starting anew")
        for entry in list(plan.work.iterdir()):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    (plan.work / TOKENIZER).write_bytes(_tokenizer_bytes(plan.config))
    content = {"identity": identity, "stamps": [_stamp(source) for source in plan.sources]}
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(content, sort_keys=True))
    os.replace(temporary, path)


def difference(part: str, wanted: Any, found: Any) -> str:
    if part in ("configuration", "libraries"):
        keys = sorted(k for k in wanted.keys() | found.keys() if as_json(wanted.get(k)) != found.get(k))
        what = "another configuration" if part == "configuration" else "other library versions"
        return f"{what} ({', '.join(keys)} differ)"
    if part == "evaluation_inputs":
        return "other evaluation files"
    return "another tokenizer" if part == "tokenizer" else "another corpus"
