"""Order: find where, in the global order of a split's rows, each shard begins."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.arrays.ranges import ranges
from data_prep.contract.shard_format import SPLITS
from data_prep.stages.pack import row_dtype, shuffle_keys
from data_prep.stages.records import MAX_RANGES, MIN_RANGE_BYTES, committed, summary_of
from data_prep.stages.work_plan import WorkPlan

HASHED_ROWS = 1 << 22
"""Rows whose keys are made at once."""

BIN_ROWS = 1 << 8
"""Rows that share a bin of the keys, about: as many are sorted around the beginning of each shard."""

MAX_BIN_BITS = 24

MIN_TASKS = 16
"""Reduce tasks that there are at least, if there are so many shards: work for several processes."""


def run_order(plan: WorkPlan) -> dict[str, Any]:
    """Write the first key of each shard; the record lists the reduce tasks as (split, first shard, shard behind).

    Keys are a function of seed and sequence id, so no row is read, only counted: two passes over the numbers of the
    rows, one to count them in bins of the keys, one to sort those bins in which a shard begins.
    """
    rows = summary_of(plan, "pack")["rows"]
    record: dict[str, Any] = {"tasks": []}
    total_bytes = sum(map(sum, rows.values())) * row_dtype(plan.geometry).itemsize
    most = min(MAX_RANGES, max(MIN_TASKS, total_bytes // (plan.num_tasks * MIN_RANGE_BYTES)))
    with committed(plan, "order", 0, record) as folder:
        for split in SPLITS:
            first = [0] * plan.num_tasks if split == SPLITS[0] else rows[SPLITS[0]]
            starts = shard_starts(plan.config.seed, first, rows[split], plan.config.rows_per_shard)
            starts.tofile(folder / f"{split}.bin")
            each = max(1, -(-len(starts) // most))
            record["tasks"] += [[split, shard, min(shard + each, len(starts))] for shard in range(0, len(starts), each)]
    return record


def read_limits(folder: Path, split: str, shard: int, behind: int) -> list[int]:
    """The first key of each of the shards, and that of the one behind them (2^64 behind the last)."""
    starts = np.fromfile(folder / f"{split}.bin", dtype="<u8")
    return [*starts[shard:behind].tolist(), int(starts[behind]) if behind < len(starts) else 2**64]


def shard_starts(seed: int, first: Sequence[int], counts: Sequence[int], rows_per_shard: int) -> np.ndarray:
    """[shards] u64, the key of the first row of each shard; 0 for the first shard, which holds all below the second.

    Args:
        first: of each map task the number of its first row in the split.
        counts: of each map task its rows in the split.
        rows_per_shard: of every shard but the last.
    """
    total = sum(counts)
    ranks = np.arange(rows_per_shard, total, rows_per_shard)  # of the first rows of all shards but the first
    if not total:
        return np.empty(0, dtype=np.uint64)
    bits = min(MAX_BIN_BITS, max(1, (total // BIN_ROWS).bit_length()))
    shift = np.uint64(64 - bits)
    counted = np.zeros(1 << bits, dtype=np.uint32)
    for keys in _keys(seed, first, counts):
        counted += np.bincount((keys >> shift).astype(np.int64), minlength=1 << bits).astype(np.uint32)
    below = np.cumsum(counted, dtype=np.int64)
    bins = np.searchsorted(below, ranks, side="right")
    wanted = np.zeros(1 << bits, dtype=bool)
    wanted[bins] = True
    inside = [keys[wanted[keys >> shift]] for keys in _keys(seed, first, counts)]
    inside = np.sort(np.concatenate(inside))
    begins = np.searchsorted(inside, bins.astype(np.uint64) << shift)  # of each rank's bin among the sorted keys
    return np.append(np.uint64(0), inside[begins + ranks - (below - counted)[bins]])


def _keys(seed: int, first: Sequence[int], counts: Sequence[int]) -> Iterator[np.ndarray]:
    """The keys of all rows, about HASHED_ROWS at a time."""
    starts, sizes = np.asarray(first, dtype=np.int64), np.asarray(counts, dtype=np.int64)
    ends = np.cumsum(sizes)
    part = 0
    while part < len(sizes):
        behind = max(part + 1, int(np.searchsorted(ends, ends[part] - sizes[part] + HASHED_ROWS, side="right")))
        here = slice(part, behind)
        rows = ranges(starts[here] + (np.arange(part, behind) << 32), sizes[here])
        for begin in range(0, len(rows), HASHED_ROWS):
            yield shuffle_keys(seed, rows[begin : begin + HASHED_ROWS].astype(np.uint64))
        part = behind
