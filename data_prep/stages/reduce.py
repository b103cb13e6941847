"""Reduce: gather, mask and write the rows of consecutive shards."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from data_prep.arrays.ranges import cut, ranges
from data_prep.arrays.spill import Spill
from data_prep.config import chunk_rows
from data_prep.contract.masking.masks import mask_rows
from data_prep.contract.masking.settings import Masking, masking_of
from data_prep.contract.shard_format import SPLITS, TOKENIZER, Geometry
from data_prep.contract.shard_writing import write_shard
from data_prep.report.statistics import mask_statistics, merge
from data_prep.stages.order import read_limits
from data_prep.stages.pack import BOUNDARIES, ROWS, row_checks, row_dtype, sequence_ids, shuffle_keys
from data_prep.stages.records import (
    checked_folder,
    committed,
    damaged,
    require_record,
    summary_of,
    task_folder,
    unique_name,
)
from data_prep.stages.work_plan import WorkPlan

_NO_BOUNDARIES = np.empty(0, dtype="<u2")


def run_reduce(plan: WorkPlan, index: int) -> dict[str, Any]:
    """Gather, mask and write the rows of consecutive shards; the record holds their entries in the index.

    Every part of the corpus is read once, in one piece. Its rows go to the shards of the task: a shuffle in two
    levels, whose cost grows with the rows and with parts x tasks, and not with parts x shards.
    """
    split, first, behind = require_record(plan, "order", 0)["tasks"][index]
    limits = read_limits(checked_folder(plan, "order", 0), split, first, behind)
    record: dict[str, Any] = {"split": split, "entries": [], "statistics": {}}
    dtypes = {"ids": np.dtype("<u8"), "rows": row_dtype(plan.geometry), "boundaries": _NO_BOUNDARIES.dtype}
    with (
        committed(plan, "reduce", index, record),
        Spill(plan.work / "reduce" / unique_name(f"scratch-{index}"), dtypes) as spill,
    ):
        _gather(plan, split, limits, spill)
        for shard in range(first, behind):
            statistics: list[dict[str, Any]] = []
            chunks = _chunks(plan, spill.take(shard - first), statistics)
            record["entries"].append(write_shard(plan.shards, split, shard, chunks))
            record["statistics"] = merge([record["statistics"], *statistics])
    return record


def _gather(plan: WorkPlan, split: str, limits: list[int], spill: Spill) -> None:
    """Put the rows of every part whose keys lie within the limits into the bucket of their shard."""
    counts = summary_of(plan, "pack")["rows"]
    starts = np.array(limits[:-1], dtype=np.uint64)
    for part in range(plan.num_tasks):
        before = counts[SPLITS[0]][part] if split != SPLITS[0] else 0
        ids = sequence_ids(part, before + np.arange(counts[split][part]))
        keys = shuffle_keys(plan.config.seed, ids)
        below = int(np.count_nonzero(keys < starts[0])) if limits[0] else 0
        inside = np.flatnonzero((keys >= starts[0]) & (keys <= np.uint64(limits[-1] - 1)))
        if not len(inside):
            continue
        inside = inside[np.argsort(keys[inside])]
        rows, boundaries = _read_rows(plan, part, before + below, len(inside))
        ends = cut(keys[inside], starts)
        edges = np.cumsum(np.append(0, rows["boundaries"].astype(np.int64)))
        for bucket in np.flatnonzero(np.diff(ends)).tolist():
            here = slice(ends[bucket], ends[bucket + 1])
            there = slice(edges[here.start], edges[here.stop])
            spill.add(bucket, ids=ids[inside[here]], rows=rows[here], boundaries=boundaries[there])


def _read_rows(plan: WorkPlan, part: int, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` rows of a part's file from row ``first`` on, and their boundaries.

    Raises:
        DamagedTask: they are not what was written.
    """
    folder = task_folder(plan, "pack", part)
    dtype = row_dtype(plan.geometry)
    try:
        rows = np.fromfile(folder / ROWS, dtype=dtype, count=count, offset=first * dtype.itemsize)
    except FileNotFoundError:
        rows = np.empty(0, dtype=dtype)
    if len(rows) < count or (row_checks(rows) != rows["check"]).any():
        damaged(plan, "pack", part, f"{ROWS} has rows of another hash")
    number = int(rows["boundaries"].sum(dtype=np.int64))
    if not number:
        return rows, _NO_BOUNDARIES
    offset = int(rows["first_boundary"][0]) * _NO_BOUNDARIES.itemsize
    boundaries = np.fromfile(folder / BOUNDARIES, dtype=_NO_BOUNDARIES.dtype, count=number, offset=offset)
    # A document that begins inside a row has a [SEP] before it: damage would not put it there.
    row = np.repeat(np.arange(count), rows["boundaries"])
    sep = plan.special_ids["sep"]
    inside = len(boundaries) == number and (boundaries >= 2).all() and (boundaries < plan.config.seq_length).all()
    if not inside or (rows["input_ids"][row, boundaries.astype(np.int64) - 1] != sep).any():
        damaged(plan, "pack", part, f"{BOUNDARIES} is not what was written")
    return rows, boundaries


_maskings: dict[str, Masking] = {}


def _masking(plan: WorkPlan) -> Masking:
    """Of this plan; the tokenizer is loaded once in a process."""
    if plan.hash not in _maskings:
        _maskings.clear()
        _maskings[plan.hash] = masking_of(
            plan.config.mask,
            masked_per_row=plan.geometry.masked_per_row,
            seed=plan.config.seed,
            special_ids=plan.special_ids,
            tokenizer=plan.shards / TOKENIZER,
        )
    return _maskings[plan.hash]


def _chunks(
    plan: WorkPlan, bucket: dict[str, np.ndarray], statistics: list[dict[str, Any]]
) -> Iterator[dict[str, np.ndarray]]:
    """The chunks of a shard, in its order, of rows that come in any order."""
    masking = _masking(plan)
    order = np.argsort(shuffle_keys(plan.config.seed, bucket["ids"]))
    counts = bucket["rows"]["boundaries"].astype(np.int64)
    begins = np.cumsum(counts) - counts
    size = chunk_rows(plan.config)
    for start in range(0, len(order), size):
        some = order[start : start + size]
        packed = bucket["rows"][some]
        rows = {
            "input_ids": np.array(packed["input_ids"]),
            "lengths": np.array(packed["length"]),
            "sequence_ids": bucket["ids"][some],
            "boundary_offsets": np.cumsum(np.append(0, counts[some])).astype(np.uint32),
            "boundary_positions": bucket["boundaries"][ranges(begins[some], counts[some])],
        }
        chunk, counted = masked_chunk(rows, masking, plan.geometry)
        statistics.append(counted)
        yield chunk


def masked_chunk(
    rows: Mapping[str, np.ndarray], masking: Masking, geometry: Geometry
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A whole chunk, and the statistics of its masks.

    Args:
        rows: the fields of a chunk (see ``shard_format``) but for those of the masks.
        masking: what the masks follow from.
        geometry: of the chunk; where it stores no masks they are drawn for the statistics alone.

    Raises:
        ValueError: a field has another shape or type than the geometry says.
    """
    masks = mask_rows(rows["input_ids"], rows["lengths"], rows["sequence_ids"], masking, geometry.num_variants)
    arrays = {**rows, **vars(masks)}
    stored = {name: arrays[name] for name in geometry.fields(len(rows["lengths"]), 0)}
    geometry.check(stored, len(rows["lengths"]))
    return stored, mask_statistics(arrays, masking.mask_id)
