"""Duplicates: decide, over the tables of all map tasks, which documents survive."""

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.corpus.documents import Reject
from data_prep.filters.exact_duplicates import exact_survivors
from data_prep.filters.near_duplicates import near_survivors
from data_prep.stages.records import committed, map_folder
from data_prep.stages.work_plan import WorkPlan


def run_duplicates(plan: WorkPlan) -> dict[str, Any]:
    """Decide which documents survive: of equal texts the first; the record counts the others."""
    folders = [map_folder(plan, index) for index in range(len(plan.tasks))]
    keys = [np.load(folder / "keys.npy", mmap_mode="r") for folder in folders]
    duplicates = plan.config.duplicates
    record: dict[str, Any] = {"rejects": {}}
    with (
        committed(plan.work / "duplicates", plan, record) as folder,
        (folder / "rejects.jsonl").open("w") as rejects,
    ):
        none = [np.full(len(part), -1, dtype=np.int64) for part in keys]
        exact = exact_survivors(keys) if duplicates.exact else none
        alive = [part < 0 for part in exact]
        near = none
        if duplicates.near_threshold is not None:
            signatures = [
                np.load(f / "signatures.npy") if len(k) else np.empty((0, 128))
                for f, k in zip(folders, keys, strict=True)
            ]
            near = near_survivors(signatures, alive, duplicates.near_threshold)
        starts = np.cumsum([0, *map(len, keys)])
        for index, (first, second) in enumerate(zip(exact, near, strict=True)):
            np.save(folder / f"{index:06d}.npy", (first < 0) & (second < 0))
            for reason, survivors in (("duplicate", first), ("near_duplicate", second)):
                for reject in _duplicate_rejects(plan, index, survivors, starts, reason):
                    record["rejects"][reason] = record["rejects"].get(reason, 0) + 1
                    rejects.write(json.dumps(vars(reject)) + "\n")
    return record


def _duplicate_rejects(
    plan: WorkPlan, index: int, survivors: np.ndarray, starts: np.ndarray, reason: str
) -> Iterator[Reject]:
    dead = np.flatnonzero(survivors >= 0)
    if not len(dead):
        return
    ids = _document_ids(map_folder(plan, index))
    for row in dead.tolist():
        part = int(np.searchsorted(starts, survivors[row], side="right")) - 1
        first = _document_ids(map_folder(plan, part))[int(survivors[row] - starts[part])]
        yield Reject(id=ids[row], reason=reason, detail=f"of {first}", sample="")


@lru_cache(maxsize=64)
def _document_ids(folder: Path) -> list[str]:
    return json.loads((folder / "ids.json").read_text())
