"""Corpus -> shard folder: plans the tasks, runs those that are not done yet, and puts the folder in its place.

Work is done in OUTPUT.partial, which bears the plan: hashes of configuration, tokenizer and every input. A run
that was killed is taken up where it stood; a plan of anything else is never mixed with it. `build_shards` runs
all tasks in worker processes, `run_task` one of them, so that a cluster can spread them over machines.
"""

import dataclasses
import gzip
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.config import PrepConfig
from data_prep.contract.command_line import UserError
from data_prep.contract.shard_writing import write_manifest
from data_prep.contract.shards import MANIFEST, REJECTS, SPLITS, file_sha256, open_shards
from data_prep.report.page import write_report
from data_prep.report.rows_as_text import rows_as_text
from data_prep.report.statistics import merge
from data_prep.stages.progress import Progress
from data_prep.stages.tasks import (
    RECORD,
    map_folder,
    pack_folder,
    read_record,
    reduce_record,
    run_duplicates,
    run_map,
    run_order,
    run_pack,
    run_reduce,
)
from data_prep.stages.work_folder import PLAN, read_plan, work_folder
from data_prep.stages.work_plan import WorkPlan, as_json, difference, make_plan
from data_prep.stages.workers import Workers

MIN_ROWS = 16
"""Rows either split needs at least: fewer give no meaningful loss"""

REPORT_REJECTS = 5
"""Rejects of each reason that the report shows"""

REPORT_ROWS = 4
"""Rows that the report surveys"""

STAGES = ("plan", "map", "duplicates", "pack", "order", "reduce", "finish")
"""The stages in order; each needs all of the one before it"""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What one run of `build_shards` did."""

    root_hash: str
    """Of the folder"""
    already_there: bool
    """True when the folder was complete before, and nothing was done"""
    splits: dict[str, dict[str, int]]
    """Split -> documents, tokens, rows"""
    rejects: dict[str, int]
    """Reason -> documents or lines that are not in the shards"""
    size: int
    """Bytes of all shards"""


def build_shards(config: PrepConfig, progress: Progress) -> Summary:
    """Make the shard folder `config.output`, take up what a killed run left, or find that it is there already.

    Raises:
        UserError: wrong input, too little text, a folder of another configuration at `output`, or another run
            at work on it.
    """
    output = Path(config.output)
    with Workers(config.num_workers) as workers:
        plan, identity = make_plan(config, workers, progress)
        if output.exists() and not (output.is_dir() and not any(output.iterdir())):
            return _already_there(output, identity)
        try:
            with work_folder(plan, identity, progress, exclusive=True):
                return _run_all(plan, identity, workers, progress)
        except OSError as error:
            raise UserError(f"cannot write the shards {output}: {error}; the same command goes on from here") from error


def run_task(config: PrepConfig, task: str, index: int | None, progress: Progress) -> str:
    """Run one task of a plan, or a whole stage where `index` is None; a line on what was done.

    Raises:
        UserError: no plan, a plan of something else, a stage before it that is not complete, or no such number.
    """
    with Workers(config.num_workers) as workers:
        if task == "plan":
            plan, identity = make_plan(config, workers, progress)
            with work_folder(plan, identity, progress, exclusive=True):
                return f"{plan.work}: map and pack tasks 0 to {len(plan.tasks) - 1}"
        plan, identity = read_plan(config)
        with work_folder(plan, identity, progress, exclusive=False):
            if task == "finish":
                summary = _finish(plan, identity)
                return f"{config.output}: root hash {summary.root_hash}"
            return _run_stage(plan, task, index, workers, progress)


def unfinished_tasks(config: PrepConfig, task: str) -> list[int]:
    """Numbers of the tasks of a stage that are not done yet, by the plan that `--task plan` wrote.

    Raises:
        UserError: no plan, a plan of something else, or for `reduce` no order yet.
    """
    plan, _ = read_plan(config)
    if task in ("plan", "finish"):
        return [0] if task == "finish" else []
    return [index for index in range(_number_of_tasks(plan, task)) if _task_record(plan, task, index) is None]


def _run_all(plan: WorkPlan, identity: dict[str, Any], workers: Workers, progress: Progress) -> Summary:
    for stage in STAGES[1:-1]:
        _run_stage(plan, stage, None, workers, progress)
    return _finish(plan, identity)


def _run_stage(plan: WorkPlan, stage: str, index: int | None, workers: Workers, progress: Progress) -> str:
    """Run the tasks of a stage that are not done yet, or the one numbered `index`."""
    total = _number_of_tasks(plan, stage)
    if index is not None and not 0 <= index < total:
        raise UserError(f"--index {index}: the {stage} tasks are numbered 0 to {total - 1}")
    chosen = range(total) if index is None else [index]
    _require_stage_before(plan, stage)
    todo = [number for number in chosen if _task_record(plan, stage, number) is None]
    progress.start(stage, *_work_of(plan, stage, chosen))
    for number in set(chosen) - set(todo):
        progress.advance(_work_of(plan, stage, [number])[0])
    argument = _stage_argument(plan, stage)
    for number, record in zip(todo, workers.run(_run_task, [(plan, stage, n, argument) for n in todo]), strict=True):
        progress.advance(_work_of(plan, stage, [number])[0], record.get("documents", 0) if stage == "map" else 0)
    if stage == "map" and (unchecked := _require_record(plan, "map", chosen[0])["unchecked_evaluation_texts"]):
        words = plan.config.duplicates.evaluation_ngram
        progress.note(f"{unchecked} evaluation texts have fewer than {words} words: nothing was checked against them")
    if stage == "pack" and index is None:
        _check_counts(plan)
    done = f"{stage}: {len(todo)} of {len(chosen)} tasks run, {len(chosen) - len(todo)} done before"
    return f"{done}; reduce tasks 0 to {_number_of_tasks(plan, 'reduce') - 1}" if stage == "order" else done


def _run_task(task: tuple[WorkPlan, str, int, Any]) -> dict[str, Any]:
    plan, stage, index, argument = task
    if stage == "map":
        return run_map(plan, index)
    if stage == "duplicates":
        return run_duplicates(plan)
    if stage == "pack":
        return run_pack(plan, index)
    if stage == "order":
        return run_order(plan, argument)
    return run_reduce(plan, index, argument)


def _number_of_tasks(plan: WorkPlan, stage: str) -> int:
    if stage in ("map", "pack"):
        return len(plan.tasks)
    if stage == "reduce":
        return len(_require_record(plan, "order", 0)["tasks"])
    return 1


def _stage_argument(plan: WorkPlan, stage: str) -> Any:
    if stage == "order":
        records = [_require_record(plan, "pack", index) for index in range(len(plan.tasks))]
        return {split: [record["rows"][split] for record in records] for split in SPLITS}
    return _require_record(plan, "order", 0)["tasks"] if stage == "reduce" else None


def _work_of(plan: WorkPlan, stage: str, numbers: Iterable[int]) -> tuple[int, str]:
    """How much work tasks are, and its unit: bytes of text for map, tasks for the others."""
    if stage == "map":
        return sum(plan.task_bytes[number] for number in numbers), "B"
    return len(list(numbers)), "tasks"


def _task_record(plan: WorkPlan, stage: str, index: int) -> dict[str, Any] | None:
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


def _require_record(plan: WorkPlan, stage: str, index: int) -> dict[str, Any]:
    record = _task_record(plan, stage, index)
    if record is None:
        raise UserError(f"{stage} task {index} of {plan.work} is not done: run it with --task {stage} --index {index}")
    return record


def _require_stage_before(plan: WorkPlan, stage: str) -> None:
    before = STAGES[STAGES.index(stage) - 1]
    if before == "plan":
        return
    for index in range(_number_of_tasks(plan, before)):
        _require_record(plan, before, index)


def _check_counts(plan: WorkPlan) -> None:
    """Raise UserError where a split has too few rows to be of use, with what would mend it."""
    config = plan.config
    maps = [_require_record(plan, "map", index) for index in range(len(plan.tasks))]
    packs = [_require_record(plan, "pack", index) for index in range(len(plan.tasks))]
    documents = sum(record["documents"] for record in maps)
    rejects = merge(record["rejects"] for record in maps)
    if not documents:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(rejects.items()))
        example = _first_reject(plan)
        raise UserError(
            f"the corpus holds no text: {f'all was rejected ({reasons}); {example}' if reasons else 'no document'}; "
            "check --corpus.paths and --corpus.text_field"
        )
    smallest = min(record["smallest_left"] for record in maps)
    for name in SPLITS:
        rows = sum(record["rows"][name] for record in packs)
        if rows >= MIN_ROWS:
            continue
        here = sum(record["documents"][name] for record in packs)
        where = (
            f"the {name} split gets {rows} rows of {config.seq_length} tokens from {here} of {documents} documents, "
            f"and needs {MIN_ROWS}"
        )
        if name == "train" or documents == 1 or smallest > 0.5:
            raise UserError(f"{where}: give more text, in more documents, or lower --seq_length")
        enough = min(0.5, np.ceil(smallest * 1000 + 1) / 1000)
        raise UserError(
            f"{where}: give more documents, or --validation_fraction {enough:.3g} or more in place of "
            f"{config.validation_fraction:g}"
        )


def _first_reject(plan: WorkPlan) -> str:
    for reject in _all_rejects(plan):
        return f"the first is {reject['id']}: {reject['detail'] or reject['reason']}"
    return ""


def _all_rejects(plan: WorkPlan) -> Iterator[dict[str, Any]]:
    paths = [map_folder(plan, index) / "rejects.jsonl" for index in range(len(plan.tasks))]
    for path in [*paths, plan.work / "duplicates" / "rejects.jsonl"]:
        if path.is_file():
            with open(path) as stream:
                yield from map(json.loads, stream)


def _finish(plan: WorkPlan, identity: dict[str, Any]) -> Summary:
    """Write rejects, manifest and report, clear the intermediate results away, and rename the folder."""
    _require_stage_before(plan, "finish")
    _check_counts(plan)
    maps = [_require_record(plan, "map", index) for index in range(len(plan.tasks))]
    packs = [_require_record(plan, "pack", index) for index in range(len(plan.tasks))]
    reduces = [_require_record(plan, "reduce", index) for index in range(_number_of_tasks(plan, "reduce"))]
    duplicates = _require_record(plan, "duplicates", 0)
    rejects = merge([*(record["rejects"] for record in maps), duplicates["rejects"]])
    splits = {
        split: {
            "documents": sum(record["documents"][split] for record in packs),
            "tokens": sum(record["tokens"][split] for record in packs),
            "rows": sum(record["rows"][split] for record in packs),
            "shards": [record["entry"] for record in reduces if record["split"] == split],
        }
        for split in SPLITS
    }
    samples = _write_rejects(plan)
    statistics = {
        "read": sum(record["read"] for record in maps),
        "not_sampled": sum(record["not_sampled"] for record in maps),
        "rejects": rejects,
        "dropped_tokens": sum(record["dropped_tokens"] for record in packs),
        "documents": merge(record["statistics"] for record in packs),
        "rows": merge(record["statistics"] for record in reduces),
    }
    rejects_file = plan.work / REJECTS
    manifest = {
        **identity,
        **dataclasses.asdict(plan.geometry),
        "special_ids": plan.special_ids,
        "splits": splits,
        "statistics": statistics,
        "rejects": {"name": REJECTS, "size": rejects_file.stat().st_size, "sha256": file_sha256(rejects_file)},
    }
    root_hash = write_manifest(plan.work, manifest)
    folder = open_shards(plan.work)
    write_report(plan.work, folder.manifest, samples, rows_as_text(folder, "train", REPORT_ROWS, 0))
    for name in ("map", "duplicates", "pack", "order", "reduce"):
        shutil.rmtree(plan.work / name)
    for torn in plan.work.glob("*.partial"):  # what a killed task left
        torn.unlink()
    (plan.work / PLAN).unlink()
    os.rename(plan.work, Path(plan.config.output))
    return _summary(root_hash, splits, rejects, already_there=False)


def _write_rejects(plan: WorkPlan) -> list[dict[str, Any]]:
    """rejects.jsonl.gz with every reject; the first few of each reason."""
    shown: dict[str, list[dict[str, Any]]] = {}
    with (
        open(plan.work / REJECTS, "wb") as file,
        gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as stream,
    ):
        for reject in _all_rejects(plan):
            stream.write((json.dumps(reject) + "\n").encode())
            samples = shown.setdefault(reject["reason"], [])
            if len(samples) < REPORT_REJECTS:
                samples.append(reject)
    return [reject for reason in sorted(shown) for reject in shown[reason]]


def _summary(root_hash: str, splits: dict[str, Any], rejects: dict[str, int], *, already_there: bool) -> Summary:
    counts = {name: {key: entry[key] for key in ("documents", "tokens", "rows")} for name, entry in splits.items()}
    size = sum(shard["size"] for entry in splits.values() for shard in entry["shards"])
    return Summary(root_hash=root_hash, already_there=already_there, splits=counts, rejects=rejects, size=size)


def _already_there(output: Path, identity: dict[str, Any]) -> Summary:
    """The summary of a complete folder with the same identity; UserError for any other."""
    if not (output / MANIFEST).is_file():
        raise UserError(f"{output} exists and is no shard folder: delete it or name another --output")
    manifest = open_shards(output).manifest
    for part, wanted in identity.items():
        if as_json(wanted) != manifest[part]:
            raise UserError(
                f"{output} holds shards made with {difference(part, wanted, manifest[part])}: "
                "delete it or name another --output"
            )
    return _summary(manifest["root_hash"], manifest["splits"], manifest["statistics"]["rejects"], already_there=True)
