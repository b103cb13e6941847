"""A shard folder made of the documents that another one has kept, and of new ones: nothing is tokenized again.

The map tasks of the new plan are those of the parent, whose results are taken over, and then those of new files. All
later stages run as they do for a corpus: ``repack`` makes the shards that ``narrowbert-prep shards`` would make of the
parent's corpus in another shape, ``append`` those of the parent's corpus and the new one, one behind the other.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.config import PrepConfig, default_chunk_rows
from data_prep.contract.command_line import UserError
from data_prep.contract.shard_format import DOCUMENTS_FOLDER, INPUTS
from data_prep.contract.shards import ShardFolder, open_shards
from data_prep.corpus.documents import CorpusFile
from data_prep.filter_config import HASHED
from data_prep.report.progress import Progress
from data_prep.stages.build import build_planned
from data_prep.stages.finish import Summary
from data_prep.stages.records import RECORD
from data_prep.stages.work_plan import (
    MapTask,
    Planned,
    SurveyedFile,
    as_json,
    build_plan,
    inputs_identity,
    libraries,
    make_plan,
    map_tasks,
    pinned_configuration,
)
from data_prep.stages.workers import Workers

REPACKED = ("seq_length", "packing", "mask", "seed", "chunk_rows", "rows_per_shard")
"""Parts of the configuration that come after tokens and documents."""

APPENDED = ("corpus",)
"""Parts that may differ between the documents of a folder."""


def configuration_options(folder: ShardFolder) -> list[str]:
    """The configuration that a folder was made with, as options of the command line."""
    if "configuration" not in folder.manifest:
        raise UserError(f"{folder.path} does not say how it was made: prepare it again with narrowbert-prep shards")
    values = as_json(folder.manifest["configuration"])
    mask, seq_length = values["mask"], values["seq_length"]
    # What followed from other options follows from them again, should they be given anew.
    if mask["per_row"] == round(mask["probability"] * seq_length):
        del mask["per_row"]
    if values["chunk_rows"] == default_chunk_rows(seq_length):
        del values["chunk_rows"]
    return [*_options("", values), "--tokenizer", str(folder.tokenizer_path)]


def _options(prefix: str, values: Mapping[str, Any]) -> list[str]:
    options: list[str] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            options += _options(f"{prefix}{name}.", value)
        elif (prefix, name) != ("corpus.", "weights") and not name.endswith(HASHED):  # of files that may be gone
            options += [f"--{prefix}{name}", value if isinstance(value, str) else json.dumps(value)]
    return options


def open_kept(path: str) -> ShardFolder:
    """A shard folder that has kept its documents.

    Raises:
        UserError: it is no shard folder, or was made without keep_documents.
    """
    folder = open_shards(path)
    if folder.remote is not None or not (folder.path / DOCUMENTS_FOLDER).is_dir():
        raise UserError(f"{path} has no documents: prepare it with --keep_documents true, on a disk of this machine")
    return folder


def repack(parent: ShardFolder, config: PrepConfig, progress: Progress) -> Summary:
    """Make ``config.output`` of the parent's documents, packed and masked as ``config`` says.

    Raises:
        UserError: ``config`` asks for more than that, or the documents are damaged; else as ``build_shards``.
    """
    _check_same(parent, config, "repack", REPACKED)
    with Workers(config.num_workers) as workers:
        return build_planned(_planned(parent, config, "repack", None), workers, progress)


def append(parent: ShardFolder, config: PrepConfig, progress: Progress) -> Summary:
    """Make ``config.output`` of the parent's documents and of those of ``config.corpus``, as the parent was made.

    Documents that the parent has are dropped as duplicates, as if both had been one corpus.

    Raises:
        UserError: ``config`` asks for more than that, or the documents are damaged; else as ``build_shards``.
    """
    _check_same(parent, config, "append", APPENDED)
    temperature = parent.manifest["configuration"]["corpus"].get("temperature")
    if config.corpus.temperature != temperature:  # all sources follow from it, also those that are there
        raise UserError(f"append cannot change corpus.temperature: {parent.path} was made with {temperature}")
    with Workers(config.num_workers) as workers:
        new = make_plan(config, workers, progress)
        if as_json(new.identity["evaluation_inputs"]) != parent.manifest["evaluation_inputs"]:
            raise UserError(
                f"{parent.path} was made with other evaluation files: give the same --duplicates.evaluation_paths"
            )
        return build_planned(_planned(parent, config, "append", new), workers, progress)


def _check_same(parent: ShardFolder, config: PrepConfig, command: str, changeable: tuple[str, ...]) -> None:
    if config.validation_paths:
        raise UserError(
            f"{command} cannot change the validation split, rows of {parent.path} may be trained on already: leave "
            "--validation_paths out, or prepare the whole corpus with it"
        )
    wanted, found = as_json(pinned_configuration(config)), parent.manifest["configuration"]
    for field in dataclasses.fields(config):  # in this order, since some of the later ones follow from earlier ones
        name, here, there = field.name, wanted.get(field.name), found.get(field.name)
        if name in (*changeable, "keep_documents") or here == there or (name == "write_text" and not here):
            continue
        if name == "write_text":
            raise UserError(f"{command} cannot write texts: {parent.path} was made without --write_text true")
        if isinstance(here, dict) and isinstance(there, dict):
            key = next(key for key in sorted({*here, *there}) if here.get(key) != there.get(key))
            name, there = f"{name}.{key}", there.get(key)
        raise UserError(f"{command} cannot change {name}: {parent.path} was made with {there}")


def _planned(parent: ShardFolder, config: PrepConfig, command: str, new: Planned | None) -> Planned:
    documents = (parent.path / DOCUMENTS_FOLDER).absolute()
    parts, validation_parts = (parent.manifest["documents"].get(key, 0) for key in ("parts", "validation_parts"))
    kept = [documents / f"{index:06d}" for index in range(parts)]
    for folder in kept:
        if not (folder / RECORD).is_file():
            raise UserError(f"{folder} is missing: restore {parent.path} from a copy or prepare it again")
    tasks = [
        MapTask(partitions=(), bytes=_size(folder), kept=str(folder), validation=number < validation_parts)
        for number, folder in enumerate(kept)
    ]
    lines = (parent.path / INPUTS).read_text().splitlines()
    sources = _sources(parent, len(lines))
    files = [_known_file(json.loads(line), source) for line, source in zip(lines, sources, strict=True)]
    if new is not None:
        new_files = _set_apart(new.files, {found.file.name for found in files}, max(sources, default=-1) + 1)
        tasks += map_tasks(new_files)
        files += new_files
    identity = {
        "configuration": pinned_configuration(config),
        "inputs": inputs_identity(found.survey for found in files),
        "evaluation_inputs": parent.manifest["evaluation_inputs"],
        "tokenizer": parent.manifest["tokenizer"],
        "libraries": libraries(config),
        "parent": {"root_hash": parent.root_hash, "made_by": command},
    }
    return Planned(plan=build_plan(config, tasks, identity), identity=identity, files=files, tasks=tasks)


def _sources(parent: ShardFolder, num_files: int) -> list[int]:
    """The source of each file of the parent, whose files lie in the order of their sources."""
    sources = parent.manifest["statistics"].get("sources")  # before they were counted all were one
    if sources is None:
        return [0] * num_files
    return [number for number, source in enumerate(sources) for _ in range(source["files"])]


def _set_apart(files: list[SurveyedFile], taken: set[str], first_source: int) -> list[SurveyedFile]:
    """New files, named so that no document has an id that another one has, and counted as sources of their own."""
    named = []
    for found in files:
        name, number = found.file.name, 1
        while name in taken:
            number += 1
            name = f"{number}//{found.file.name}"
        taken.add(name)
        file = dataclasses.replace(found.file, name=name, source=first_source + found.file.source)
        named.append(dataclasses.replace(found, file=file, survey={**found.survey, "name": name}))
    return named


def _size(folder: Path) -> int:
    return (folder / "tokens.bin").stat().st_size


def _known_file(survey: dict[str, Any], source: int) -> SurveyedFile:
    """A file of the parent's corpus, which is not read again."""
    file = CorpusFile(name=survey["name"], path=None, weight=1.0, kind="builtin", compression=None, source=source)
    return SurveyedFile(file=file, survey=survey, stamp=None)
