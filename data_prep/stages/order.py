"""Order: put the rows of a split into their global order."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from data_prep.contract.shard_format import SPLITS
from data_prep.rows.random_streams import stream_keys
from data_prep.stages.records import committed, require_record
from data_prep.stages.work_plan import WorkPlan

ORDER_ROWS = 1 << 22
"""Rows whose order is made at once."""


SHUFFLE_STREAM = 1 << 40
"""Variant number, beyond any real one, whose stream keys order the rows."""


def run_order(plan: WorkPlan) -> dict[str, Any]:
    """Write the global order of each split's rows; the record lists the reduce tasks as (split, shard).

    A sequence id is (map task << 32) + row, train rows before validation rows. Rows are sorted by a hash of
    (seed, sequence id): a permutation that needs no generator, and so does not depend on the version of one.
    """
    packs = [require_record(plan, "pack", index) for index in range(len(plan.tasks))]
    rows = {split: [pack["rows"][split] for pack in packs] for split in SPLITS}
    record: dict[str, Any] = {"tasks": []}
    with committed(plan.work / "order", plan, record) as folder:
        for split in SPLITS:
            first = [0] * len(plan.tasks) if split == SPLITS[0] else rows[SPLITS[0]]
            total = sum(rows[split])
            with (folder / f"{split}.bin").open("wb") as stream:
                stream.writelines(piece.tobytes() for piece in _ordered(plan.config.seed, first, rows[split]))
            shards = -(-total // plan.config.rows_per_shard)
            record["tasks"] += [[split, shard] for shard in range(shards)]
    return record


def _ordered(seed: int, first: list[int], counts: list[int]) -> Iterator[np.ndarray]:
    """Sequence ids by rising hash: in passes over ranges of the hash, so that memory stays bounded."""
    passes = -(-sum(counts) // ORDER_ROWS)
    limits = [number * 2**64 // passes for number in range(passes)] + [2**64]
    for low, high in itertools.pairwise(limits):
        ids, keys = [], []
        for group, (start, count) in enumerate(zip(first, counts, strict=True)):
            here = np.arange(start, start + count, dtype=np.uint64) + np.uint64(group << 32)
            key = stream_keys(seed, here, SHUFFLE_STREAM)
            inside = (key >= np.uint64(low)) & (key <= np.uint64(high - 1))
            ids.append(here[inside])
            keys.append(key[inside])
        yield np.concatenate(ids)[np.argsort(np.concatenate(keys), kind="stable")]
