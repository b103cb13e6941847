"""What ``narrowbert-prep shards`` is going to do, from configuration and corpus alone; every task reads it."""

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.config import PrepConfig, chunk_rows, masked_per_row, tokenizer_path
from data_prep.contract.command_line import config_as_dict
from data_prep.contract.shard_format import Geometry
from data_prep.contract.tokenizer import continues_word, load_tokenizer, special_ids, vocabulary_size
from data_prep.corpus.documents import CorpusFile, Partition
from data_prep.corpus.files import find_corpus_files
from data_prep.corpus.partitions import partition_bytes, plan_partitions
from data_prep.corpus.surveys import survey
from data_prep.filters.evaluation_ngrams import evaluation_files
from data_prep.filters.near_duplicates import near_signature
from data_prep.report.progress import Progress
from data_prep.stages.workers import Workers


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkPlan:
    """What every task needs to know; it follows from configuration and corpus alone."""

    work: Path
    """Folder the shards are made in."""
    hash: str
    """Of everything below, of the tokenizer and of the inputs; every record bears it."""
    config: PrepConfig
    """The whole configuration."""
    files: tuple[CorpusFile, ...]
    """The files of the corpus."""
    tasks: tuple[tuple[Partition, ...], ...]
    """The map tasks: partitions of one file, or several small files."""
    task_bytes: tuple[int, ...]
    """Text in each, decompressed."""
    geometry: Geometry
    """Shapes of the chunks."""
    special_ids: dict[str, int]
    """Role -> id."""


def make_plan(config: PrepConfig, workers: Workers, progress: Progress) -> tuple[WorkPlan, dict[str, Any]]:
    """The plan and what it follows from: configuration, tokenizer and inputs."""
    tokenizer = hashlib.sha256(tokenizer_bytes(config)).hexdigest()  # first: it is missing more often than a file
    files = find_corpus_files(config.corpus)
    evaluation = evaluation_files(config)
    progress.start("read", len(files) + len(evaluation), "files")
    surveys = []
    for found in workers.run(_survey, [(file, config) for file in [*files, *evaluation]]):
        surveys.append(found)
        progress.advance(1)
    identity = {
        "configuration": pinned_configuration(config),
        "inputs": surveys[: len(files)],
        "evaluation_inputs": surveys[len(files) :],
        "tokenizer": {"sha256": tokenizer},
        "libraries": libraries(config),
    }
    return build_plan(config, files, identity), identity


def _survey(task: tuple[CorpusFile, PrepConfig]) -> dict[str, Any]:
    return survey(task[0], task[1].corpus)


def build_plan(config: PrepConfig, files: Sequence[CorpusFile], identity: dict[str, Any]) -> WorkPlan:
    tokenizer = load_tokenizer(tokenizer_path(config), config.vocabulary)
    if config.mask.unit != "token":
        continues_word(tokenizer)  # refuses, before any work, a tokenizer that does not tell words
    output = Path(config.output)
    tasks = _map_tasks(plan_partitions(files, identity["inputs"]), identity["inputs"])
    return WorkPlan(
        work=output.with_name(output.name + ".partial").absolute(),
        hash=identity_hash(identity),
        config=config,
        files=tuple(files),
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
        found = inputs[partition.file]
        size = round(found["bytes"] * (partition.end - partition.begin) / max(found["units"], 1))
        if not tasks or filled + size > limit:
            tasks.append([])
            filled = 0
        tasks[-1].append((partition, size))
        filled += size
    return tasks


def identity_hash(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def tokenizer_bytes(config: PrepConfig) -> bytes:
    """The tokenizer.json that goes into the folder."""
    path = Path(tokenizer_path(config))
    tokenizer = load_tokenizer(path, config.vocabulary)
    return tokenizer.to_str(pretty=True).encode() if path.suffix == ".txt" else path.read_bytes()


def libraries(config: PrepConfig) -> dict[str, str]:
    names = ["narrowbert", "charset-normalizer", "numpy", "pyarrow", "safetensors", "tokenizers", "xxhash"]
    if config.duplicates.near_threshold is not None:
        near_signature("")  # refuses, before any work, where the library is missing
        names.append("datasketch")
    return {name: importlib.metadata.version(name) for name in names}


def pinned_configuration(config: PrepConfig) -> dict[str, Any]:
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
