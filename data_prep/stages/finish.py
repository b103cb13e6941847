"""Finish: write rejects, manifest and report, and put the folder in its place."""

import dataclasses
import gzip
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.config import PrepConfig
from data_prep.contract.command_line import UserError
from data_prep.contract.files import flush_to_disk
from data_prep.contract.shard_format import DOCUMENTS_FOLDER, INPUTS, REJECTS, SPLITS, TEXT_FOLDER
from data_prep.contract.shard_writing import file_entry, write_manifest
from data_prep.contract.shards import open_shards
from data_prep.corpus.draws import more_documents
from data_prep.report.page import write_report
from data_prep.report.rows_as_text import rows_as_text
from data_prep.report.statistics import merge, mostly_rejected, notes_on_masks, source_statistics
from data_prep.stages.map import REJECTS_PART, TEXT
from data_prep.stages.records import checked_folder, records_of, require_stage_before, summary_of
from data_prep.stages.work_plan import WorkPlan, input_line, planned_files, work_path

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
    mapped, packed = summary_of(plan, "map"), summary_of(plan, "pack")
    documents, smallest = sum(mapped["documents"]), mapped["smallest_left"]
    if not documents:
        rejects = merge(source.get("rejects", {}) for source in mapped["sources"].values())
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(rejects.items()))
        example = _first_reject(plan)
        raise UserError(
            f"the corpus holds no text: {f'all was rejected ({reasons}); {example}' if reasons else 'no document'}; "
            "check --corpus.paths and --corpus.text_field"
        )
    for name in SPLITS:
        rows = sum(packed["rows"][name])
        if rows >= MIN_ROWS:
            continue
        where = (
            f"the {name} split gets {rows} rows of {config.seq_length} tokens from {packed['documents'][name]} of "
            f"{documents} documents, and needs {MIN_ROWS}"
        )
        if name == "train" or documents == 1 or smallest > 0.5:
            raise UserError(f"{where}: {more_documents(config)}, or lower --seq_length")
        enough = min(0.5, np.ceil(smallest * 1000 + 1) / 1000)
        raise UserError(
            f"{where}: {more_documents(config)}, or --validation_fraction {enough:.3g} or more in place of "
            f"{config.validation_fraction:g}"
        )


def _first_reject(plan: WorkPlan) -> str:
    for reject in _all_rejects(plan):
        return f"the first is {reject['id']}: {reject['detail'] or reject['reason']}"
    return ""


def _reject_files(plan: WorkPlan) -> Iterator[Path]:
    for stage in ("map", "pack"):
        for index in range(plan.num_tasks):
            yield checked_folder(plan, stage, index, REJECTS_PART) / REJECTS_PART


def _all_rejects(plan: WorkPlan) -> Iterator[dict[str, Any]]:
    for path in _reject_files(plan):
        with gzip.open(path, "rt") as stream:
            yield from map(json.loads, stream)


def finish(plan: WorkPlan, identity: dict[str, Any], note: Callable[[str], None]) -> Summary:
    """Write rejects, inputs, manifest and report, put the folder in its place, and clear the rest away.

    The folder is complete when it gets its name. A kill after that leaves only the intermediate results, which the
    same command clears away. A source of which most was left out is noted.
    """
    require_stage_before(plan, "finish")
    check_counts(plan)
    mapped, packed = summary_of(plan, "map"), summary_of(plan, "pack")
    sources = source_statistics(planned_files(plan), merge([mapped["sources"], packed["sources"]]))
    rejects = merge(source["rejects"] for source in sources)
    splits = {
        split: {
            "documents": packed["documents"][split],
            "tokens": packed["tokens"][split],
            "rows": sum(packed["rows"][split]),
        }
        for split in SPLITS
    }
    rows = merge(record["statistics"] for record in records_of(plan, "reduce"))
    for line in [*mostly_rejected(sources), *notes_on_masks(plan.config.mask.unit, rows)]:
        note(line)
    samples = _write_rejects(plan, rejects)
    inputs = plan.shards / INPUTS
    with inputs.open("wb") as stream:
        stream.writelines(input_line(survey) for survey, _ in planned_files(plan))
    statistics = {
        "read": sum(source["read"] for source in sources),
        "not_sampled": sum(source["not_sampled"] for source in sources),
        "rejects": rejects,
        "sources": sources,
        "dropped_tokens": packed["dropped_tokens"],
        "documents": packed["statistics"],
        "rows": rows,
    }
    manifest = {
        **identity,
        **dataclasses.asdict(plan.geometry),
        "special_ids": plan.special_ids,
        "splits": splits,
        "statistics": statistics,
        **({"text": {"files": _put_texts(plan)}} if plan.config.write_text else {}),
        **({"documents": {"parts": plan.num_tasks}} if plan.config.keep_documents else {}),
        "files": {"rejects": file_entry(plan.shards / REJECTS), "inputs": file_entry(inputs)},
    }
    root_hash = write_manifest(plan.shards, manifest, {split: _entries(plan, split) for split in SPLITS})
    folder = open_shards(plan.shards)
    write_report(plan.shards, folder.manifest, folder.indexes, samples, rows_as_text(folder, "train", REPORT_ROWS, 0))
    for torn in plan.shards.glob("*.partial"):  # what a killed task left
        torn.unlink()
    for path in [*plan.shards.iterdir(), plan.shards]:
        flush_to_disk(path)
    plan.shards.rename(Path(plan.config.output))
    flush_to_disk(plan.work.parent)
    clear_away(plan.config)
    return summary(root_hash, folder.manifest["splits"], rejects, already_there=False)


def _put_texts(plan: WorkPlan) -> int:
    """Put the texts of all pack tasks beside the shards, in the order of the corpus; how many files they are."""
    folder = plan.shards / TEXT_FOLDER
    folder.mkdir(exist_ok=True)
    for index in range(plan.num_tasks):
        path = folder / f"{index:06d}.parquet"
        path.unlink(missing_ok=True)  # of a finish that was killed
        shutil.copyfile(checked_folder(plan, "pack", index, TEXT) / TEXT, path)
        flush_to_disk(path)
    return plan.num_tasks


def _entries(plan: WorkPlan, split: str) -> Iterator[dict[str, Any]]:
    """What ``write_shard`` said of each shard of a split."""
    for record in records_of(plan, "reduce"):
        if record["split"] == split:
            yield from record["entries"]


def clear_away(config: PrepConfig) -> None:
    """Delete the intermediate results of a folder that is in its place; what cannot be deleted stays.

    With ``keep_documents`` what the map tasks left moves into the folder: its records say to the byte what it is.
    """
    work, documents = work_path(config), Path(config.output) / DOCUMENTS_FOLDER
    if config.keep_documents and not documents.exists() and (work / "map").exists():
        (work / "map").rename(documents)
    shutil.rmtree(work, ignore_errors=True)


def _write_rejects(plan: WorkPlan, counts: dict[str, int]) -> list[dict[str, Any]]:
    """rejects.jsonl.gz with every reject; the first few of each reason."""
    with (plan.shards / REJECTS).open("wb") as file:
        for path in _reject_files(plan):
            with path.open("rb") as part:
                shutil.copyfileobj(part, file)
    return first_rejects(_all_rejects(plan), counts)


def first_rejects(rejects: Iterable[dict[str, Any]], counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """The first few rejects of each reason, of which there are ``counts``."""
    shown: dict[str, list[dict[str, Any]]] = {reason: [] for reason in sorted(counts)}
    missing = {reason: min(REPORT_REJECTS, count) for reason, count in counts.items()}
    for reject in rejects if missing else ():
        reason = reject["reason"]
        if missing.get(reason):
            shown[reason].append(reject)
            missing[reason] -= 1
            if not any(missing.values()):
                break
    return [reject for found in shown.values() for reject in found]


def summary(root_hash: str, splits: dict[str, Any], rejects: dict[str, int], *, already_there: bool) -> Summary:
    counts = {name: {key: entry[key] for key in ("documents", "tokens", "rows")} for name, entry in splits.items()}
    size = sum(entry["size"] for entry in splits.values())
    return Summary(root_hash=root_hash, already_there=already_there, splits=counts, rejects=rejects, size=size)
