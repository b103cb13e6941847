"""A shard folder of the rows of another one, in their order and chunks, with other masks.

Work is done in OUTPUT.partial, one task a shard:

    parent.json         what is made of what
    records/000003.json entry and statistics of a shard that is done
    shards/             the folder that becomes OUTPUT

A shard counts as done when its record is on disk, after its tar. So the same command goes on after a kill, and number
and order of the workers change no byte.
"""

import dataclasses
import gzip
import json
import shutil
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_prep.config import PrepConfig, RemaskConfig, check_config, masked_per_row
from data_prep.contract.command_line import UserError
from data_prep.contract.files import flush_to_disk, write_atomically
from data_prep.contract.masking.settings import Masking, masking_of
from data_prep.contract.shard_format import (
    MANIFEST,
    PINNED_FILES,
    REJECTS,
    SPLITS,
    TOKENIZER,
    Geometry,
    file_sha256,
    shard_name,
)
from data_prep.contract.shard_writing import file_entry, write_manifest, write_shard
from data_prep.contract.shards import ShardFolder, open_folder, open_shards
from data_prep.report.page import write_report
from data_prep.report.progress import Progress
from data_prep.report.rows_as_text import rows_as_text
from data_prep.report.statistics import merge, notes_on_masks
from data_prep.stages.finish import REPORT_ROWS, Summary, first_rejects, summary
from data_prep.stages.reduce import masked_chunk
from data_prep.stages.work_folder import locked_work_folder
from data_prep.stages.work_plan import pinned_configuration, work_path
from data_prep.stages.workers import Workers

PARENT = "parent.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Task:
    """One shard to make."""

    parent: str
    """Location of the folder that is read."""
    root_hash: str
    """Of that folder."""
    work: Path
    """OUTPUT.partial."""
    config: PrepConfig
    """Whose mask and seed count."""
    number: int
    """Of the shard, among those of all splits."""
    split: str
    shard: int
    """Of the shard, in its split."""

    @property
    def record(self) -> Path:
        """The file that says that the shard is done."""
        return self.work / "records" / f"{self.number:06d}.json"


def mask_options(parent: str) -> list[str]:
    """The masks of a shard folder, as options of the command line.

    Raises:
        UserError: it is no shard folder, or does not say how its rows were masked.
    """
    folder = open_shards(parent)
    made = folder.manifest.get("configuration")
    if not made or not {"mask", "seed"} <= made.keys() or "statistics" not in folder.manifest:
        raise UserError(f"{parent} does not say how it was made: prepare it again with narrowbert-prep shards")
    mask = dict(made["mask"])
    if mask["per_row"] == round(mask["probability"] * folder.seq_length):
        del mask["per_row"]  # it follows from the probability again, should that be given anew
    options = ["--seed", str(made["seed"])]
    for name, value in mask.items():
        options += [f"--mask.{name}", value if isinstance(value, str) else json.dumps(value)]
    return options


def remask(parent: str, config: RemaskConfig, progress: Progress) -> Summary:
    """Make ``config.output`` of the rows of ``parent``, resume what a killed run left, or return if it is complete.

    Raises:
        UserError: masks that do not fit the rows, a damaged ``parent``, something else at ``config.output`` or in
            OUTPUT.partial, or a full disk.
    """
    folder = open_shards(parent)
    wanted = PrepConfig(
        output=config.output,
        seq_length=folder.seq_length,
        mask=config.mask,
        seed=config.seed,
        num_workers=config.num_workers,
    )
    check_config(wanted)
    output = Path(config.output)
    work = work_path(wanted)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        return _already_there(folder, wanted, work)
    try:
        with locked_work_folder(work, progress, exclusive=True), Workers(config.num_workers) as workers:
            _claim(work, folder, wanted)
            tasks = list(_tasks(folder, wanted, work))
            todo = [task for task in tasks if _done(task) is None]
            progress.start("remask", len(tasks), "shards", len(tasks) - len(todo))
            for _ in workers.run(_run_task, todo):
                progress.advance(1)
            return _finish(folder, wanted, work, tasks, progress.note)
    except OSError as error:
        raise UserError(f"cannot write the shards {output}: {error}; the same command goes on from here") from error


def _identity(folder: ShardFolder, config: PrepConfig) -> dict[str, Any]:
    """What the new folder is made of."""
    return {"root_hash": folder.root_hash, "mask": pinned_configuration(config)["mask"], "seed": config.seed}


def _already_there(folder: ShardFolder, config: PrepConfig, work: Path) -> Summary:
    """The summary of a complete folder of the same; UserError for any other. What a kill left beside it goes."""
    if not (Path(config.output) / MANIFEST).is_file():
        raise UserError(f"{config.output} exists and is no shard folder: delete it or name another --output")
    manifest = open_shards(config.output).manifest
    made = manifest.get("configuration", {})
    found = {**manifest.get("parent", {}), "mask": made.get("mask"), "seed": made.get("seed")}
    if found != {**_identity(folder, config), "made_by": "remask"}:
        raise UserError(f"{config.output} holds other shards: delete it or name another --output")
    if _is_claimed(work, folder, config):
        shutil.rmtree(work, ignore_errors=True)
    return summary(manifest, already_there=True)


def _is_claimed(work: Path, folder: ShardFolder, config: PrepConfig) -> bool:
    """Whether the work folder holds work on the same."""
    path = work / PARENT
    return path.is_file() and path.read_text() == json.dumps(_identity(folder, config), sort_keys=True)


def _claim(work: Path, folder: ShardFolder, config: PrepConfig) -> None:
    """Make the work folder this command's, unless it holds finished work on something else."""
    ours = {path.name for path in work.iterdir()} <= {PARENT, "records", "shards"}
    if ours and not any((work / "records").glob("*")):
        write_atomically(work / PARENT, json.dumps(_identity(folder, config), sort_keys=True), durable=True)
    if not _is_claimed(work, folder, config):
        raise UserError(
            f"{work} is unfinished work of another command, on other shards or with other masks: finish it, delete it "
            "or name another --output"
        )
    for name in ("records", "shards"):
        (work / name).mkdir(exist_ok=True)


def _tasks(folder: ShardFolder, config: PrepConfig, work: Path) -> Iterator[_Task]:
    number = 0
    for split in SPLITS:
        for shard in range(folder.indexes[split].num_shards):
            yield _Task(
                parent=folder.location,
                root_hash=folder.root_hash,
                work=work,
                config=config,
                number=number,
                split=split,
                shard=shard,
            )
            number += 1


def _done(task: _Task) -> dict[str, Any] | None:
    """The record of a shard that is there in its size."""
    try:
        record = json.loads(task.record.read_text())
    except (FileNotFoundError, ValueError):
        return None
    path = task.work / "shards" / shard_name(task.split, task.shard)
    return record if path.is_file() and path.stat().st_size == record["entry"]["size"] else None


def _geometry(folder: ShardFolder, config: PrepConfig) -> Geometry:
    return dataclasses.replace(
        folder.geometry,
        masked_per_row=masked_per_row(config),
        num_variants=config.mask.variants,
        masks_stored=config.mask.stored,
    )


@lru_cache(maxsize=1)
def _opened(parent: str, root_hash: str, config: PrepConfig) -> tuple[ShardFolder, Masking]:
    folder = open_folder(parent)
    if folder.root_hash != root_hash:
        raise UserError(f"{parent} has changed meanwhile: give the command again")
    masking = masking_of(
        config.mask,
        masked_per_row=masked_per_row(config),
        seed=config.seed,
        special_ids=folder.special_ids,
        tokenizer=folder.tokenizer_path,
    )
    return folder, masking


def _run_task(task: _Task) -> None:
    folder, masking = _opened(task.parent, task.root_hash, task.config)
    split, geometry = folder.split(task.split), _geometry(folder, task.config)
    names = dataclasses.replace(geometry, masks_stored=False).fields(0, 0)
    statistics: list[dict[str, Any]] = []

    def chunks() -> Iterator[dict[str, Any]]:
        for number in split.index.chunks(task.shard):
            fields = split.chunk(number)
            chunk, counted = masked_chunk({name: fields[name] for name in names}, masking, geometry)
            statistics.append(counted)
            yield chunk

    entry = write_shard(task.work / "shards", task.split, task.shard, chunks())
    write_atomically(task.record, json.dumps({"entry": entry, "statistics": merge(statistics)}), durable=True)


def _records(tasks: list[_Task], split: str | None = None) -> Iterator[dict[str, Any]]:
    for task in tasks:
        if split in (None, task.split):
            record = _done(task)
            if record is None:
                raise UserError(f"{task.record} or its shard has gone: give the same command again")
            yield record


def _copied(folder: ShardFolder, shards: Path) -> dict[str, Any]:
    """Tokenizer, rejects and inputs of the parent in the new folder; the ``files`` of its manifest.

    Raises:
        UserError: one is missing or damaged.
    """
    shutil.copyfile(folder.tokenizer_path, shards / TOKENIZER)
    files = {}
    for key, entry in folder.manifest["files"].items():
        problem = folder.files.problem(entry)
        if problem is None and file_sha256(folder.files.local(entry)) != entry["sha256"]:
            problem = f"{folder.files.name(entry['name'])} is damaged (its sha256 is not the manifest's)"
        if problem:
            raise UserError(f"{problem}; restore the file from a copy or prepare again")
        path = shards / PINNED_FILES[key]
        shutil.copyfile(folder.files.local(entry), path)
        files[key] = file_entry(path)
    return files


def _finish(
    folder: ShardFolder, config: PrepConfig, work: Path, tasks: list[_Task], note: Callable[[str], None]
) -> Summary:
    """Write what stands beside the shards, and put the folder in its place."""
    shards, output = work / "shards", Path(config.output)
    identity = _identity(folder, config)
    # What lies beside the rows of the parent, its documents and texts, does not come along.
    made = {
        key: value
        for key, value in folder.manifest["configuration"].items()
        if key not in ("keep_documents", "write_text")
    }
    rows = merge(x["statistics"] for x in _records(tasks))
    for line in notes_on_masks(config.mask.unit, rows):
        note(line)
    manifest = {
        **{key: value for key, value in folder.manifest.items() if key not in ("root_hash", "documents", "text")},
        **dataclasses.asdict(_geometry(folder, config)),
        "configuration": {**made, "mask": identity["mask"], "seed": config.seed},
        "statistics": {**folder.manifest["statistics"], "rows": rows},
        "files": _copied(folder, shards),
        "parent": {"root_hash": folder.root_hash, "made_by": "remask"},
    }
    write_manifest(
        shards, manifest, {split: (record["entry"] for record in _records(tasks, split)) for split in SPLITS}
    )
    new = open_shards(shards)
    rejects = manifest["statistics"]["rejects"]
    samples: list[dict[str, Any]] = []
    if (shards / REJECTS).is_file():
        with gzip.open(shards / REJECTS, "rt") as stream:
            samples = first_rejects(map(json.loads, stream), rejects)
    write_report(shards, new.manifest, new.indexes, samples, rows_as_text(new, "train", REPORT_ROWS, 0))
    for torn in shards.glob("*.partial"):  # what a killed task left
        torn.unlink()
    for path in [*shards.iterdir(), shards]:
        flush_to_disk(path)
    shards.rename(output)
    flush_to_disk(work.parent)
    shutil.rmtree(work, ignore_errors=True)
    return summary(new.manifest, already_there=False)
