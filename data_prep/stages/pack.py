"""Pack: turn the surviving documents of one map task into rows, in the order of their shuffle.

Rows of a split are ordered by a hash of (seed, sequence id). Each pack task sorts its own, so that any range of the
order is one range of its file: whoever makes a shard reads each part's rows of it in one go.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from data_prep.arrays.mapped_array import MappedArray
from data_prep.contract.masking.random_streams import stream_keys
from data_prep.contract.shard_format import SPLITS, Geometry
from data_prep.corpus.documents import Reject
from data_prep.corpus.draws import copies_of_draws, draws_of, temperature_weights, weight_draw
from data_prep.corpus.written_texts import write_kept
from data_prep.report.statistics import document_statistics, merge
from data_prep.rows.packing import RowPlan, Rows, fill_rows, plan_rows, reordered
from data_prep.stages.duplicates import dropped_documents, held_out_documents
from data_prep.stages.map import TEXT, DocumentTable, RejectFile, read_documents
from data_prep.stages.records import checked_folder, committed, summary_of
from data_prep.stages.work_plan import WorkPlan

FILL_ROWS = 1 << 13
"""Rows a pack task holds at once."""

SCATTERED_ROWS = 1 << 7
"""The same where the tokens are more than fit into memory: each row may bring a large page, up to 2 MB, of them."""

IN_MEMORY_BYTES = 1 << 28
"""Tokens that may all be in memory."""

SHUFFLE_STREAM = 1 << 40
"""Variant number, beyond any real one, whose stream keys order the rows."""

REPEATED_LINES = {"lines": "lines_out", "characters": "characters_out"}
"""What is counted of lines that earlier documents have, and its column of a map task's table."""

ROWS, BOUNDARIES = "rows.bin", "boundaries.bin"


def row_dtype(geometry: Geometry) -> np.dtype:
    """A packed row in a file: ``check`` is a hash of the rest of it."""
    ids = (geometry.token_dtype, (geometry.seq_length,))
    columns = [("length", "<u2"), ("boundaries", "<u2"), ("first_boundary", "<u4"), ("input_ids", *ids)]
    return np.dtype([("check", "<u8"), *columns])


def row_checks(rows: np.ndarray) -> np.ndarray:
    """[rows] u64, the hash (xxh3) that ``check`` holds for each row."""
    whole = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)
    return np.fromiter(map(xxhash.xxh3_64_intdigest, whole[:, 8:]), dtype=np.uint64, count=len(rows))


def sequence_ids(part: int, rows: np.ndarray) -> np.ndarray:
    """[n] u64, (map task << 32) + row; validation rows count on behind the train rows."""
    return rows.astype(np.uint64) + np.uint64(part << 32)


def shuffle_keys(seed: int, ids: np.ndarray) -> np.ndarray:
    """[n] u64, by which rows are ordered: no two rows share one, since the hash can be inverted.

    A permutation that needs no generator, and so does not depend on the version of one.
    """
    return stream_keys(seed, ids, SHUFFLE_STREAM)


def run_pack(plan: WorkPlan, index: int) -> dict[str, Any]:
    """Pack the surviving documents of one map task into rows; its record."""
    source = checked_folder(plan, "map", index)
    table = read_documents(source)
    dropped, rejects = dropped_documents(plan, index, table)
    keep = np.ones(len(table.column("length")), dtype=bool)
    keep[dropped] = False
    tokens = MappedArray(source / "tokens.bin", plan.geometry.token_dtype)
    record: dict[str, Any] = {"rows": {}, "documents": {}, "tokens": {}, "dropped_tokens": 0}
    with committed(plan, "pack", index, record) as folder:
        rejects_by_source = _write_rejects(folder, rejects, table.column("source")[dropped])
        held_out = held_out_documents(plan, table)
        if plan.config.write_text:
            write_kept(source / TEXT, folder / TEXT, keep, held_out)
        first_row = first_boundary = 0
        for number, split in enumerate(SPLITS):
            chosen = keep & (held_out == number)
            rows, sequence = planned_rows(plan, index, table, chosen, number)
            ids = sequence_ids(index, first_row + np.arange(len(rows.lengths)))
            order = np.argsort(shuffle_keys(plan.config.seed, ids))
            first_boundary = _write_rows(folder, reordered(rows, order), tokens, plan, first_boundary)
            first_row += len(order)
            record["rows"][split] = len(order)
            record["documents"][split] = int(chosen.sum())
            record["tokens"][split] = int(table.column("length")[sequence].sum()) - rows.dropped_tokens
            record["dropped_tokens"] += rows.dropped_tokens
        record["statistics"] = document_statistics(
            characters=table.column("characters")[keep],
            words=table.column("words")[keep],
            tokens=table.column("length")[keep],
            unknown=int(table.column("unknown")[keep].sum()),
        )
        lines = plan.config.filters.repeated_lines.across_documents
        record["sources"] = merge([_by_source(table, keep, lines=lines), rejects_by_source])
    return record


def planned_rows(
    plan: WorkPlan, index: int, table: DocumentTable, chosen: np.ndarray, number: int
) -> tuple[RowPlan, np.ndarray]:
    """The rows of a split made of some documents of a map task, and those documents as often as they are taken.

    Args:
        index: of the map task.
        chosen: [documents] bool, those of the split.
        number: of the split, as its place in ``SPLITS``.
    """
    copies = _copies(plan, table) if SPLITS[number] == "train" else np.ones_like(table.column("copies"))
    sequence = _sequence(chosen, copies)
    rows = plan_rows(
        table.column("length"),
        packing=plan.config.packing,
        seq_length=plan.config.seq_length,
        seed=plan.config.seed,
        key=2 * index + number,
        sequence=sequence,
    )
    return rows, sequence


def _write_rejects(folder: Path, rejects: Iterator[Reject], sources: np.ndarray) -> dict[str, Any]:
    """Write rejects, and count those of each source."""
    with RejectFile(folder) as file:
        for reject, source in zip(rejects, sources.tolist(), strict=True):
            file.write(reject, source)
    return file.by_source()


def _by_source(table: DocumentTable, keep: np.ndarray, *, lines: bool) -> dict[str, Any]:
    """Source -> documents that are kept of it, their words, tokens and tokens that are [UNK], and what was taken out of
    them with ``lines``."""
    sources = table.column("source")
    columns = {"words": "words", "tokens": "length", "unknown_tokens": "unknown"}
    counts: dict[str, Any] = {}
    for source in np.unique(sources[keep]).tolist():
        chosen = keep & (sources == source)
        sums = {name: int(table.column(column)[chosen].sum()) for name, column in columns.items()}
        counts[str(source)] = {"documents": int(chosen.sum()), **sums}
        if lines:
            out = {name: int(table.column(column)[chosen].sum()) for name, column in REPEATED_LINES.items()}
            shortened = int((table.column("lines_out")[chosen] > 0).sum())
            counts[str(source)]["repeated_lines"] = {"documents": shortened, **out}
    return counts


def source_weights(plan: WorkPlan) -> dict[int, float]:
    """Source -> how often ``corpus.temperature`` takes its documents; empty where that is not given.

    Raises:
        UserError: one would be taken too often.
    """
    temperature = plan.config.corpus.temperature
    if temperature is None:
        return {}
    sources = summary_of(plan, "map")["sources"]
    sizes = {int(source): counts["bytes"] for source, counts in sources.items() if "bytes" in counts}
    return temperature_weights(sizes, temperature)


def _copies(plan: WorkPlan, table: DocumentTable) -> np.ndarray:
    """[documents] i64, how often each is taken."""
    weights = source_weights(plan)
    if not weights:
        return table.column("copies")
    names = table.ids(np.arange(len(table.column("length"))))
    draws = draws_of(names, weight_draw)
    return copies_of_draws(draws, np.array([weights.get(source, 1.0) for source in table.column("source").tolist()]))


def _sequence(chosen: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """The chosen documents in their order; copies of a document stand apart: all of the task's text lies between."""
    copies = np.where(chosen, copies, 0)
    rounds = [np.flatnonzero(copies > number) for number in range(max(copies, default=0))]
    return np.concatenate([np.empty(0, dtype=np.int64), *rounds])


def _write_rows(folder: Path, rows: RowPlan, tokens: MappedArray, plan: WorkPlan, first_boundary: int) -> int:
    """Append the rows of a split, [number of boundaries written so far] in and out."""
    special, dtype = plan.special_ids, row_dtype(plan.geometry)
    step = FILL_ROWS if tokens.array.nbytes <= IN_MEMORY_BYTES else SCATTERED_ROWS
    total = len(rows.lengths)
    with (folder / ROWS).open("ab") as row_file, (folder / BOUNDARIES).open("ab") as boundary_file:
        for first in range(0, total, step):
            last = min(first + step, total)
            block = fill_rows(
                rows, first, last, tokens.array, pad=special["pad"], cls=special["cls"], sep=special["sep"]
            )
            tokens.forget_pages()
            row_file.write(_packed(block, dtype, first_boundary).data)
            boundary_file.write(block.boundary_positions.tobytes())
            first_boundary += len(block.boundary_positions)
    return first_boundary


def _packed(block: Rows, dtype: np.dtype, first_boundary: int) -> np.ndarray:
    packed = np.empty(len(block.lengths), dtype=dtype)
    offsets = block.boundary_offsets.astype(np.int64)
    packed["length"], packed["input_ids"] = block.lengths, block.input_ids
    packed["boundaries"], packed["first_boundary"] = np.diff(offsets), first_boundary + offsets[:-1]
    packed["check"] = row_checks(packed)
    return packed
