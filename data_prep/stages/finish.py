"""Finish: write rejects, manifest and report, and put the folder in its place."""

import dataclasses
import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.contract.command_line import UserError
from data_prep.contract.shard_format import REJECTS, SPLITS
from data_prep.contract.shard_writing import file_entry, write_manifest
from data_prep.contract.shards import open_shards
from data_prep.report.page import write_report
from data_prep.report.rows_as_text import rows_as_text
from data_prep.report.statistics import merge
from data_prep.stages.records import (
    map_folder,
    number_of_tasks,
    require_record,
    require_stage_before,
)
from data_prep.stages.work_folder import PLAN
from data_prep.stages.work_plan import WorkPlan

MIN_ROWS = 16
"""Rows either split needs at least: fewer give no meaningful loss."""


REPORT_REJECTS = 5
"""Rejects of each reason that the report shows."""


REPORT_ROWS = 4
"""Rows that the report prints."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """What one run of ``build_shards`` did."""

    root_hash: str
    """Of the folder."""
    already_there: bool
    """True when the folder was complete before, and nothing was done."""
    splits: dict[str, dict[str, int]]
    """Split -> documents, tokens, rows."""
    rejects: dict[str, int]
    """Reason -> documents or lines that are not in the shards."""
    size: int
    """Bytes of all shards."""


def check_counts(plan: WorkPlan) -> None:
    """Raise UserError where a split has too few rows to be of use, with what would fix it."""
    config = plan.config
    maps = [require_record(plan, "map", index) for index in range(len(plan.tasks))]
    packs = [require_record(plan, "pack", index) for index in range(len(plan.tasks))]
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
            with path.open() as stream:
                yield from map(json.loads, stream)


def finish(plan: WorkPlan, identity: dict[str, Any]) -> Summary:
    """Write rejects, manifest and report, clear the intermediate results away, and rename the folder."""
    require_stage_before(plan, "finish")
    check_counts(plan)
    maps = [require_record(plan, "map", index) for index in range(len(plan.tasks))]
    packs = [require_record(plan, "pack", index) for index in range(len(plan.tasks))]
    reduces = [require_record(plan, "reduce", index) for index in range(number_of_tasks(plan, "reduce"))]
    duplicates = require_record(plan, "duplicates", 0)
    rejects = merge([*(record["rejects"] for record in maps), duplicates["rejects"]])
    splits = {
        split: {
            "documents": sum(record["documents"][split] for record in packs),
            "tokens": sum(record["tokens"][split] for record in packs),
            "rows": sum(record["rows"][split] for record in packs),
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
    manifest = {
        **identity,
        **dataclasses.asdict(plan.geometry),
        "special_ids": plan.special_ids,
        "splits": splits,
        "statistics": statistics,
        "files": {"rejects": file_entry(plan.work / REJECTS)},
    }
    entries = {split: [record["entry"] for record in reduces if record["split"] == split] for split in SPLITS}
    root_hash = write_manifest(plan.work, manifest, entries)
    folder = open_shards(plan.work)
    write_report(plan.work, folder.manifest, folder.indexes, samples, rows_as_text(folder, "train", REPORT_ROWS, 0))
    for name in ("map", "duplicates", "pack", "order", "reduce"):
        shutil.rmtree(plan.work / name)
    for torn in plan.work.glob("*.partial"):  # what a killed task left
        torn.unlink()
    (plan.work / PLAN).unlink()
    plan.work.rename(Path(plan.config.output))
    return summary(root_hash, folder.manifest["splits"], rejects, already_there=False)


def _write_rejects(plan: WorkPlan) -> list[dict[str, Any]]:
    """rejects.jsonl.gz with every reject; the first few of each reason."""
    shown: dict[str, list[dict[str, Any]]] = {}
    with (
        (plan.work / REJECTS).open("wb") as file,
        gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as stream,
    ):
        for reject in _all_rejects(plan):
            stream.write((json.dumps(reject) + "\n").encode())
            samples = shown.setdefault(reject["reason"], [])
            if len(samples) < REPORT_REJECTS:
                samples.append(reject)
    return [reject for reason in sorted(shown) for reject in shown[reason]]


def summary(root_hash: str, splits: dict[str, Any], rejects: dict[str, int], *, already_there: bool) -> Summary:
    counts = {name: {key: entry[key] for key in ("documents", "tokens", "rows")} for name, entry in splits.items()}
    size = sum(entry["size"] for entry in splits.values())
    return Summary(root_hash=root_hash, already_there=already_there, splits=counts, rejects=rejects, size=size)
