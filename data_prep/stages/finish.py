"""Finish: write rejects, manifest and report, and put the folder in its place."""

import dataclasses
import gzip
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.config import PrepConfig, validation_fraction
from data_prep.contract.command_line import UserError
from data_prep.contract.files import flush_to_disk
from data_prep.contract.shard_format import DOCUMENTS_FOLDER, INPUTS, REJECTS, SPLITS, TEXT_FOLDER
from data_prep.contract.shard_writing import file_entry, write_manifest
from data_prep.contract.shards import open_shards
from data_prep.corpus.draws import MIN_ROWS, draws_of, more_documents, number_between
from data_prep.report.page import write_report
from data_prep.report.rows_as_text import rows_as_text
from data_prep.report.statistics import (
    encodings_of,
    merge,
    mostly_rejected,
    notes_on_encodings,
    notes_on_lines,
    notes_on_masks,
    notes_on_repairs,
    notes_on_weights,
    source_statistics,
)
from data_prep.stages.duplicates import dropped_documents
from data_prep.stages.map import DOCUMENTS, REJECTS_PART, TEXT, read_documents
from data_prep.stages.pack import planned_rows, source_weights
from data_prep.stages.records import checked_folder, records_of, require_stage_before, summary_of
from data_prep.stages.work_plan import WorkPlan, input_line, map_task, planned_files, work_path
from data_prep.tokens.losses import notes_on_losses

_TRAIN, _VALIDATION = 0, 1
"""Places in ``SPLITS``."""

_MOST_SEARCHED = 1 << 20
"""Documents among which a fraction is looked for: their draws are held in memory."""


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
    unknown_share: float
    """Share of the tokens that are [UNK]."""


def check_counts(plan: WorkPlan) -> None:
    """Raise UserError where a split has too few rows to be of use, with what would fix it."""
    config = plan.config
    mapped, packed = summary_of(plan, "map"), summary_of(plan, "pack")
    documents = sum(mapped["documents"])
    if not documents:
        rejects = merge(source.get("rejects", {}) for source in mapped["sources"].values())
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(rejects.items()))
        example = _first_reject(plan)
        raise UserError(
            f"the corpus holds no text: {f'all was rejected ({reasons}); {example}' if reasons else 'no document'}; "
            "check --corpus.paths and --corpus.text_field"
        )
    has_validation = plan.validation_tasks > 0 or validation_fraction(config) > 0
    for number, name in enumerate(SPLITS if has_validation else SPLITS[:_VALIDATION]):
        rows = sum(packed["rows"][name])
        if rows >= MIN_ROWS:
            continue
        raise UserError(
            f"the {name} split gets {rows} rows of {config.seq_length} tokens from {packed['documents'][name]} of "
            f"{documents} documents, and needs {MIN_ROWS}: {_remedy(plan, number)}"
        )


def _remedy(plan: WorkPlan, short: int) -> str:
    """What gives the split of this place in ``SPLITS`` enough rows."""
    if all(map_task(plan, index).kept is not None for index in range(plan.num_tasks)):
        return "lower --seq_length"  # of documents that are what they are
    fraction = validation_fraction(plan.config)
    if plan.validation_tasks and short == _VALIDATION:
        return "give more text in --validation_paths, or lower --seq_length"
    if plan.validation_tasks or not fraction:
        return f"{more_documents(plan.config)}, or lower --seq_length"
    if sum(summary_of(plan, "map")["documents"]) > _MOST_SEARCHED or plan.config.validation_split == "stratified":
        size = "larger" if short == _VALIDATION else "smaller"
        return f"take a {size} --validation_fraction, it is {fraction:g}"
    better = _Survivors(plan).fraction(short)
    other = f"--validation_fraction {better} in place of {fraction:g}"
    return f"{more_documents(plan.config)}, or {'lower --seq_length' if better is None else other}"


class _Survivors:
    """The documents that are no duplicates, by their draws; what a split would be with other ones of them."""

    def __init__(self, plan: WorkPlan) -> None:
        self._plan = plan
        draws, tasks, rows = [], [], []
        for index in range(plan.num_tasks):
            table = read_documents(checked_folder(plan, "map", index, DOCUMENTS))
            left = np.setdiff1d(np.arange(len(table.column("length"))), dropped_documents(plan, index, table)[0])
            draws.append(draws_of(table.ids(left)))
            tasks.append(np.full(len(left), index))
            rows.append(left)
        every = np.concatenate(draws)
        order = np.argsort(every, kind="stable")
        self._draws = every[order]
        self._tasks, self._rows = np.concatenate(tasks)[order], np.concatenate(rows)[order]

    def fraction(self, short: int) -> str | None:
        """The ``validation_fraction`` nearest to the given one with which both splits have enough rows.

        Args:
            short: the split that has too few, as its place in ``SPLITS``.

        Returns:
            It, as one writes it; None where there is none up to a half.
        """
        limits = np.unique(self._draws)  # with a fraction above limits[k - 1] and up to limits[k], k are below it
        few, many = 1, 1  # how many draws the short split has
        while many < len(limits) and not self._has_enough(short, limits, many):
            few, many = many, many * 2
        many = min(many, len(limits) - 1)
        while few < many:  # the number is in few ... many
            middle = (few + many) // 2
            few, many = (few, middle) if self._has_enough(short, limits, middle) else (middle + 1, many)
        below = few if short == _VALIDATION else len(limits) - few
        if not 0 < below < len(limits) or not all(
            self._has_enough(split, limits, below if split == _VALIDATION else len(limits) - below)
            for split in (_TRAIN, _VALIDATION)
        ):
            return None
        fraction = number_between(float(limits[below - 1]), float(limits[below]))
        return fraction if short == _TRAIN or float(fraction) <= 0.5 else None

    def _has_enough(self, split: int, limits: np.ndarray, count: int) -> bool:
        """Whether a split has enough rows with the ``count`` lowest draws (training: the highest)."""
        chosen = self._draws <= limits[count - 1] if split == _VALIDATION else self._draws >= limits[-count]
        rows = 0
        for index in np.unique(self._tasks[chosen]).tolist():
            table = read_documents(checked_folder(self._plan, "map", index, DOCUMENTS))
            of_task = np.zeros(len(table.column("length")), dtype=bool)
            of_task[self._rows[chosen & (self._tasks == index)]] = True
            rows += len(planned_rows(self._plan, index, table, of_task, split)[0].lengths)
            if rows >= MIN_ROWS:
                return True
        return False


def _first_reject(plan: WorkPlan) -> str:
    for reject in _all_rejects(plan):
        return f"the first is {reject['id']}: {reject['detail'] or reject['reason']}"
    return ""


def _reject_files(plan: WorkPlan) -> Iterator[Path]:
    """The files of rejects of all tasks, checked."""
    for stage in ("map", "pack"):
        for index in range(plan.num_tasks):
            yield checked_folder(plan, stage, index, REJECTS_PART) / REJECTS_PART


def _all_rejects(plan: WorkPlan) -> Iterator[dict[str, Any]]:
    """Every reject, in the order of the tasks."""
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
    packed = summary_of(plan, "pack")
    statistics = _statistics(plan)
    for line in _notes(plan, statistics):
        note(line)
    splits = {
        split: {
            "documents": packed["documents"][split],
            "tokens": packed["tokens"][split],
            "rows": sum(packed["rows"][split]),
        }
        for split in SPLITS
    }
    samples = _write_rejects(plan, statistics["rejects"])
    inputs = plan.shards / INPUTS
    with inputs.open("wb") as stream:
        stream.writelines(input_line(survey) for survey, _ in planned_files(plan))
    manifest = {
        **identity,
        **dataclasses.asdict(plan.geometry),
        "special_ids": plan.special_ids,
        "splits": splits,
        "statistics": statistics,
        **({"text": {"files": _put_texts(plan)}} if plan.config.write_text else {}),
        **({"documents": _kept_parts(plan)} if plan.config.keep_documents else {}),
        "files": {"rejects": file_entry(plan.shards / REJECTS), "inputs": file_entry(inputs)},
    }
    write_manifest(plan.shards, manifest, {split: _entries(plan, split) for split in SPLITS})
    folder = open_shards(plan.shards)
    write_report(plan.shards, folder.manifest, folder.indexes, samples, rows_as_text(folder, "train", REPORT_ROWS, 0))
    for torn in plan.shards.glob("*.partial"):  # what a killed task left
        torn.unlink()
    for path in [*plan.shards.iterdir(), plan.shards]:
        flush_to_disk(path)
    plan.shards.rename(Path(plan.config.output))
    flush_to_disk(plan.work.parent)
    clear_away(plan.config)
    return summary(folder.manifest, already_there=False)


def _statistics(plan: WorkPlan) -> dict[str, Any]:
    """What the manifest counts."""
    mapped, packed = summary_of(plan, "map"), summary_of(plan, "pack")
    counts = merge([mapped["sources"], packed["sources"]])
    sources = source_statistics(planned_files(plan), counts, source_weights(plan))
    encodings = encodings_of(survey for survey, _ in planned_files(plan))
    repaired = sum(source.get("repaired", 0) for source in sources)
    lines = merge(source.get("repeated_lines", {}) for source in sources)
    return {
        "read": sum(source["read"] for source in sources),
        "not_sampled": sum(source["not_sampled"] for source in sources),
        "rejects": merge(source["rejects"] for source in sources),
        **({"repaired": repaired} if plan.config.cleaning.repair_mojibake else {}),
        **({"repeated_lines": lines} if plan.config.filters.repeated_lines.across_documents else {}),
        "sources": sources,
        "dropped_tokens": packed["dropped_tokens"],
        "documents": packed["statistics"],
        "rows": merge(record["statistics"] for record in records_of(plan, "reduce")),
        **({"encodings": encodings} if encodings else {}),
    }


def _notes(plan: WorkPlan, statistics: Mapping[str, Any]) -> list[str]:
    """What a user should know of the folder, a line each."""
    return [
        *notes_on_encodings(statistics.get("encodings", {}), statistics["sources"]),
        *notes_on_repairs(statistics.get("repaired", 0)),
        *notes_on_lines(statistics.get("repeated_lines", {})),
        *notes_on_weights(source_weights(plan)),
        *mostly_rejected(statistics["sources"]),
        *_notes_on_losses(plan),
        *notes_on_masks(plan.config.mask.unit, statistics["rows"]),
    ]


def _notes_on_losses(plan: WorkPlan) -> list[str]:
    documents = summary_of(plan, "pack")["statistics"]
    counts = merge(summary_of(plan, "map")["sources"].values())
    asked = plan.config.vocabulary.strip_accents
    return notes_on_losses(documents["unknown_tokens"] / max(documents["tokens"], 1), {} if asked else counts)


def _kept_parts(plan: WorkPlan) -> dict[str, int]:
    """How many folders of documents there are, and how many of them, the first ones, are of ``validation_paths``."""
    own = {"validation_parts": plan.validation_tasks} if plan.validation_tasks else {}
    return {"parts": plan.num_tasks, **own}


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


def summary(manifest: Mapping[str, Any], *, already_there: bool) -> Summary:
    """What a finished folder holds."""
    splits, documents = manifest["splits"], manifest["statistics"]["documents"]
    return Summary(
        root_hash=manifest["root_hash"],
        already_there=already_there,
        splits={name: {key: entry[key] for key in ("documents", "tokens", "rows")} for name, entry in splits.items()},
        rejects=manifest["statistics"]["rejects"],
        size=sum(entry["size"] for entry in splits.values()),
        unknown_share=documents["unknown_tokens"] / max(documents["tokens"], 1),
    )
