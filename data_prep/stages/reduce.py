"""Reduce: gather, mask and write the rows of one shard."""

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.config import chunk_rows
from data_prep.contract.files import write_atomically
from data_prep.contract.shard_format import SPLITS, TOKENIZER
from data_prep.contract.shard_writing import write_shard
from data_prep.contract.tokenizer import continues_word, load_tokenizer, ordinary_ids
from data_prep.report.statistics import mask_statistics, merge
from data_prep.rows.mapped_array import MappedArray
from data_prep.rows.masking import mask_rows
from data_prep.rows.packing import Rows
from data_prep.stages.records import pack_folder, reduce_record, require_record
from data_prep.stages.work_plan import WorkPlan

GATHER_ROWS = 1 << 7
"""Rows a reduce task reads of one file at once: each may bring a large page, up to 2 MB, of the file into memory."""


def run_reduce(plan: WorkPlan, index: int) -> dict[str, Any]:
    """Gather, mask and write the rows of one shard; its record holds its entry in the manifest."""
    split, shard = require_record(plan, "order", 0)["tasks"][index]
    size = plan.config.rows_per_shard
    order = np.memmap(plan.work / "order" / f"{split}.bin", dtype="<u8", mode="r")
    sequence_ids = np.array(order[shard * size : (shard + 1) * size])
    statistics: list[dict[str, Any]] = []
    chunks = _chunks(plan, sequence_ids, _gather(plan, split, sequence_ids), statistics)
    entry = write_shard(plan.work, split, shard, chunks)
    record = {"plan": plan.hash, "split": split, "entry": entry, "statistics": merge(statistics)}
    path = reduce_record(plan, index)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, json.dumps(record, sort_keys=True))
    return record


def _gather(plan: WorkPlan, split: str, sequence_ids: np.ndarray) -> Rows:
    """The rows of a shard from the packed parts, in the shard's order."""
    groups = (sequence_ids >> np.uint64(32)).astype(np.int64)
    within = (sequence_ids & np.uint64(0xFFFFFFFF)).astype(np.int64)
    count, seq_length = len(within), plan.config.seq_length
    input_ids = np.empty((count, seq_length), dtype=plan.geometry.token_dtype)
    lengths = np.empty(count, dtype=np.uint16)
    boundary_counts = np.zeros(count, dtype=np.int64)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for group in np.unique(groups):
        folder = pack_folder(plan, int(group))
        here = np.flatnonzero(groups == group)
        there = within[here]
        if split != SPLITS[0]:
            there = there - len(np.load(folder / f"{SPLITS[0]}-lengths.npy", mmap_mode="r"))
        rows = MappedArray(folder / f"{split}.bin", input_ids.dtype)
        for start in range(0, len(here), GATHER_ROWS):
            some = slice(start, start + GATHER_ROWS)
            input_ids[here[some]] = rows.array.reshape(-1, seq_length)[there[some]]
            rows.forget_pages()
        lengths[here] = np.load(folder / f"{split}-lengths.npy")[there]
        offsets = np.load(folder / f"{split}-offsets.npy")
        positions = np.load(folder / f"{split}-positions.npy")
        boundary_counts[here] = offsets[there + 1] - offsets[there]
        found.append((here, positions[_ranges(offsets[there], boundary_counts[here])]))
    offsets = np.concatenate([[0], np.cumsum(boundary_counts)])
    positions = np.empty(offsets[-1], dtype=np.uint16)
    for here, values in found:
        positions[_ranges(offsets[here], boundary_counts[here])] = values
    return Rows(
        input_ids=input_ids,
        lengths=lengths,
        boundary_offsets=offsets.astype(np.uint32),
        boundary_positions=positions,
    )


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The numbers start, start + 1, ... of every range, one range after the other."""
    ends = np.cumsum(counts)
    return np.repeat(starts - ends + counts, counts) + np.arange(ends[-1] if len(ends) else 0)


@lru_cache(maxsize=1)
def _token_classes(work: Path, _plan_hash: str, unit: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Ids that may replace a token; whether a token continues the word before it, which single tokens need not know."""
    tokenizer = load_tokenizer(work / TOKENIZER)
    words = None if unit == "token" else continues_word(tokenizer)
    return np.array(ordinary_ids(tokenizer), dtype=np.int64), words


def _chunks(
    plan: WorkPlan, sequence_ids: np.ndarray, rows: Rows, statistics: list[dict[str, Any]]
) -> Iterator[dict[str, np.ndarray]]:
    special = plan.special_ids
    ordinary, continues = _token_classes(plan.work, plan.hash, plan.config.mask.unit)
    size = chunk_rows(plan.config)
    for start in range(0, len(rows.lengths), size):
        stop = min(start + size, len(rows.lengths))
        offsets = rows.boundary_offsets[start : stop + 1]
        masks = mask_rows(
            rows.input_ids[start:stop],
            rows.lengths[start:stop],
            sequence_ids[start:stop],
            mask=plan.config.mask,
            masked_per_row=plan.geometry.masked_per_row,
            seed=plan.config.seed,
            unmaskable_ids=np.array([special["cls"], special["sep"], special["pad"]]),
            mask_id=special["mask"],
            ordinary_ids=ordinary,
            continues_word=continues,
        )
        arrays = {
            "input_ids": rows.input_ids[start:stop],
            "lengths": rows.lengths[start:stop],
            **vars(masks),
            "sequence_ids": sequence_ids[start:stop],
            "boundary_offsets": offsets - offsets[0],
            "boundary_positions": rows.boundary_positions[offsets[0] : offsets[-1]],
        }
        plan.geometry.check(arrays, stop - start)
        statistics.append(mask_statistics(arrays, special["mask"]))
        yield arrays
