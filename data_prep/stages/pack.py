"""Pack: turn the surviving documents of one map task into rows."""

from pathlib import Path
from typing import Any

import numpy as np

from data_prep.contract.shard_format import SPLITS
from data_prep.report.statistics import document_statistics
from data_prep.rows.mapped_array import MappedArray
from data_prep.rows.packing import RowPlan, fill_rows, plan_rows
from data_prep.stages.map import read_table
from data_prep.stages.records import committed, map_folder, pack_folder
from data_prep.stages.work_plan import WorkPlan

FILL_ROWS = 1 << 15
"""Rows a pack task holds at once."""


def run_pack(plan: WorkPlan, index: int) -> dict[str, Any]:
    """Pack the surviving documents of one map task into rows; its record."""
    source = map_folder(plan, index)
    table = read_table(source)
    keep = np.load(plan.work / "duplicates" / f"{index:06d}.npy")
    dtype = plan.geometry.token_dtype
    tokens = MappedArray(source / "tokens.bin", dtype)
    record: dict[str, Any] = {"rows": {}, "documents": {}, "tokens": {}, "dropped_tokens": 0}
    with committed(pack_folder(plan, index), plan, record) as folder:
        for number, split in enumerate(SPLITS):
            chosen = keep & (table["validation"] == number)
            sequence = np.flatnonzero(chosen)
            if split == "train":  # copies of a document stand apart: all of the task's text lies between them
                copies = np.where(chosen, table["copies"], 0)
                rounds = [np.flatnonzero(copies > number) for number in range(max(copies, default=0))]
                sequence = np.concatenate([sequence[:0], *rounds])
            rows = plan_rows(
                table["length"],
                packing=plan.config.packing,
                seq_length=plan.config.seq_length,
                seed=plan.config.seed,
                key=2 * index + number,
                sequence=sequence,
            )
            record["rows"][split] = _write_rows(folder, split, rows, tokens, plan)
            record["documents"][split] = int(chosen.sum())
            record["tokens"][split] = int(table["length"][sequence].sum()) - rows.dropped_tokens
            record["dropped_tokens"] += rows.dropped_tokens
        record["statistics"] = document_statistics(
            characters=table["characters"][keep],
            words=table["words"][keep],
            tokens=table["length"][keep],
            unknown=int(table["unknown"][keep].sum()),
        )
    return record


def _write_rows(folder: Path, split: str, rows: RowPlan, tokens: MappedArray, plan: WorkPlan) -> int:
    special = plan.special_ids
    lengths, counts, positions = [], [], []
    total = len(rows.lengths)
    with (folder / f"{split}.bin").open("wb") as stream:
        for first in range(0, total, FILL_ROWS):
            last = min(first + FILL_ROWS, total)
            block = fill_rows(
                rows, first, last, tokens.array, pad=special["pad"], cls=special["cls"], sep=special["sep"]
            )
            tokens.forget_pages()
            stream.write(block.input_ids.tobytes())
            lengths.append(block.lengths)
            counts.append(np.diff(block.boundary_offsets.astype(np.int64)))
            positions.append(block.boundary_positions)
    empty = np.empty(0, dtype=np.int64)
    np.save(folder / f"{split}-lengths.npy", np.concatenate([empty, *lengths]).astype(np.uint16))
    np.save(folder / f"{split}-offsets.npy", np.concatenate([[0], np.cumsum(np.concatenate([empty, *counts]))]))
    np.save(folder / f"{split}-positions.npy", np.concatenate([empty, *positions]).astype(np.uint16))
    return total
