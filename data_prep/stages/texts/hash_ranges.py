"""One range of a hash out of the sorted tables that the tasks of a stage left, in buckets that fit into memory."""

from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.arrays.ranges import hash_limits
from data_prep.arrays.spill import Spill
from data_prep.stages.records import damaged, require_record, task_folder, unique_name
from data_prep.stages.work_plan import WorkPlan

BUCKET_ENTRIES = 1 << 20
"""Entries of the tables that are sorted at once."""

TOGETHER_ENTRIES, TOGETHER_PARTS = 1 << 16, 1 << 10
"""Entries, and parts of the corpus, whose tables are cut into buckets in one go."""


class SortedTables(NamedTuple):
    """A table for each part of the corpus, in a file of the folder of that part's task."""

    plan: WorkPlan
    """Whose tasks."""
    stage: str
    """Whose task for each part left the table."""
    name: str
    """Of the file."""
    dtype: np.dtype
    """Of an entry; its field ``row`` is a number within the part."""
    key: str
    """The field, a u64 hash, by which entries rise."""
    starts: np.ndarray
    """[parts + 1] i64, what is added to the ``row`` of each part to number the whole corpus."""
    entries: int
    """Of all tables, about."""

    def buckets(
        self, number: int, of: int, dtypes: dict[str, np.dtype], scratch: Path
    ) -> Iterator[dict[str, np.ndarray]]:
        """The entries of range ``number`` of ``of``, as columns: those of ``dtypes``, where ``documents`` is ``row``
        numbered through the whole corpus. What does not fit into memory goes through a folder in ``scratch``."""
        low, high = [*hash_limits(of).tolist(), 2**64][number : number + 2]
        shares = max(1, -(-self.entries // of // BUCKET_ENTRIES))
        limits = np.array([low + share * (high - low) // shares for share in range(shares)], dtype=np.uint64)
        with Spill(scratch / unique_name(f"scratch-{number}"), dtypes) as spill:
            for columns in self._read_together(low, high):
                buckets = np.searchsorted(limits, columns[self.key], side="right") - 1
                order = np.argsort(buckets, kind="stable")  # a part's entries are rising already
                ends = np.searchsorted(buckets[order], np.arange(shares + 1))
                for bucket in np.flatnonzero(np.diff(ends)).tolist():
                    here = order[ends[bucket] : ends[bucket + 1]]
                    spill.add(bucket, **{field: columns[field][here] for field in dtypes})
            for bucket in range(shares):
                yield spill.take(bucket)

    def _read_together(self, low: int, high: int) -> Iterator[dict[str, np.ndarray]]:
        """Entries of several tables, as columns: many small ones at once."""
        pending: list[np.ndarray] = []
        documents: list[np.ndarray] = []
        held = 0
        for part in range(self.plan.num_tasks):
            entries = self._range_of(part, low, high)
            pending.append(entries)
            documents.append(entries["row"] + self.starts[part])
            held += len(entries)
            if part == self.plan.num_tasks - 1 or held >= TOGETHER_ENTRIES or len(pending) >= TOGETHER_PARTS:
                whole = np.concatenate(pending)
                fields = {field: whole[field] for field in self.dtype.names or () if field != "row"}
                yield {**fields, "documents": np.concatenate(documents)}
                pending, documents, held = [], [], 0

    def _range_of(self, part: int, low: int, high: int) -> np.ndarray:
        """The entries of one table with low <= key < high."""
        record = require_record(self.plan, self.stage, part)
        if not record["files"][self.name]["size"]:
            return np.empty(0, dtype=self.dtype)
        table = np.memmap(task_folder(self.plan, self.stage, part) / self.name, dtype=self.dtype, mode="r")
        keys = table[self.key]
        entries = np.array(table[first_at_least(keys, low) : first_at_least(keys, high)])
        found = entries[self.key]
        if len(found) and (found[0] < low or found[-1] >= high or (found[1:] < found[:-1]).any()):
            damaged(self.plan, self.stage, part, f"{self.name} is not sorted")
        return entries


def first_at_least(keys: np.ndarray, value: int) -> int:
    """The place of the first of rising keys that is not below a value; few pages of a map are touched."""
    return bisect_left(range(len(keys)), value, key=lambda row: int(keys[row]))
