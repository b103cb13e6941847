"""Documents -> rows of seq_length, in two steps: plan rows from the documents' lengths, then fill them block by block.

concat    rows from one stream of all documents (FULL-SENTENCES of RoBERTa, Liu et al. 2019, section 4.2):
          [CLS] tokens [SEP] tokens [SEP], no token lost, and but for short_seq_prob only the last row is short
document  rows of consecutive text of one document; what is left of a document makes a short row
isolated  pieces of documents, each framed by its own [CLS] ... [SEP], best-fit-decreasing into rows: of all rows with
          room a piece goes into the fullest, the longest pieces first (Ding et al. 2024, "Fewer Truncations Improve
          Language Modeling", pack language-model rows so)

A plan holds a few numbers for every segment, a run of tokens that stands in one row. Filling copies them from the
token array, which may be a memory map, so memory depends on the block and not on the corpus.
"""

import dataclasses
import itertools
from bisect import bisect_left, insort
from collections.abc import Iterator

import numpy as np

from data_prep.arrays.ranges import ranges
from data_prep.config import PackingConfig
from data_prep.contract.masking.random_streams import stream_keys

SHORT_STREAM = (1 << 40) + 1
"""Variant number, beyond any real one, whose stream keys draw the short rows."""

FILL_TOKENS = 1 << 18
"""Tokens filled at once: the index arrays then stay in the cache."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """R packed rows of S tokens."""

    input_ids: np.ndarray
    """[R, S] token ids; [PAD] after the end of a short row."""
    lengths: np.ndarray
    """[R] u16, real tokens of each row, [CLS] and [SEP] included."""
    boundary_offsets: np.ndarray
    """[R + 1] u32: row i has boundary_positions[boundary_offsets[i]:boundary_offsets[i + 1]]."""
    boundary_positions: np.ndarray
    """u16, positions in the row at which a new document begins (isolated: that of its [CLS]); the row's own first
    token is not one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowPlan:
    """Which tokens stand where, in R rows made of segments."""

    seq_length: int
    """S, tokens per row."""
    isolated: bool
    """Whether every segment has a [CLS] of its own; else only the first of a row."""
    lengths: np.ndarray
    """[R] u16, real tokens of each row, special tokens included."""
    segment_offsets: np.ndarray
    """[R + 1] i64: row i has segments segment_offsets[i] up to segment_offsets[i + 1], from left to right."""
    segment_columns: np.ndarray
    """[s] u16, position in the row of a segment's first token; a [SEP] follows its last one."""
    segment_starts: np.ndarray
    """[s] i64, place of its first token in the token array."""
    segment_lengths: np.ndarray
    """[s] u16, its tokens."""
    dropped_tokens: int
    """Tokens of remainders left out, see drop_remainder_below."""


def plan_rows(
    document_lengths: np.ndarray,
    *,
    packing: PackingConfig,
    seq_length: int,
    seed: int,
    key: int,
    sequence: np.ndarray | None = None,
) -> RowPlan:
    """Plan the rows of documents whose tokens, without special tokens, lie one after the other in an array.

    Args:
        document_lengths: [d] tokens of each document; an empty one makes nothing.
        seq_length: S, tokens per row, at least 4.
        key: number of this group of documents, below 2^31; with ``seed`` it decides which rows are short.
        sequence: indices of the documents in the order in which they are taken; an index may come several times.
    """
    document_lengths = np.asarray(document_lengths, dtype=np.int64)
    offsets = np.cumsum(document_lengths) - document_lengths
    if sequence is not None:
        document_lengths, offsets = document_lengths[sequence], offsets[sequence]
    offsets, document_lengths = offsets[document_lengths > 0], document_lengths[document_lengths > 0]
    targets = _Targets(capacity=seq_length - 2, probability=packing.short_seq_prob, seed=seed, key=key)
    if packing.mode == "concat":
        return _plan_concat(offsets, document_lengths, targets, seq_length)
    pieces = _cut(offsets, document_lengths, targets, packing.drop_remainder_below)
    dropped = int(document_lengths.sum() - pieces.lengths.sum())
    if packing.mode == "isolated":
        return _plan_isolated(pieces, seq_length, dropped)
    rows = len(pieces.lengths)
    return RowPlan(
        seq_length=seq_length,
        isolated=False,
        lengths=(pieces.lengths + 2).astype(np.uint16),
        segment_offsets=np.arange(rows + 1),
        segment_columns=np.ones(rows, dtype=np.uint16),
        segment_starts=pieces.starts,
        segment_lengths=pieces.lengths.astype(np.uint16),
        dropped_tokens=dropped,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Targets:
    """How many tokens, without [CLS] and the last [SEP], each row takes.

    A share of the rows gets a uniform draw from 2 to the capacity, as in create_instances_from_document of BERT's
    create_pretraining_data.py (Devlin et al. 2019): they teach the model short inputs.
    """

    capacity: int
    probability: float
    seed: int
    key: int

    def of(self, rows: np.ndarray) -> np.ndarray:
        """[rows] i64, for row numbers below 2^32."""
        if not self.probability:
            return np.full(len(rows), self.capacity)
        draws = stream_keys(self.seed, rows.astype(np.uint64) + np.uint64(self.key << 32), SHORT_STREAM)
        lengths = 2 + (((draws & np.uint64(0xFFFFFFFF)) * np.uint64(self.capacity - 1)) >> np.uint64(32)).astype(int)
        return np.where(draws >> np.uint64(32) < round(self.probability * 2**32), lengths, self.capacity)

    def ends(self) -> Iterator[int]:
        """Ends of rows 0, 1, 2 ... in the stream of all rows' contents, without end."""
        last = 0
        for block in itertools.count():
            ends = last + np.cumsum(self.of(np.arange(block << 12, (block + 1) << 12)))
            last = int(ends[-1])
            yield from ends.tolist()


def _plan_concat(offsets: np.ndarray, lengths: np.ndarray, targets: _Targets, seq_length: int) -> RowPlan:
    """Lay the documents into one stream, separators between them, and cut it at the ends of the rows."""
    starts, filled, row_ends = _lay_out(lengths.tolist(), targets)
    row_starts = np.concatenate([row_ends[:0], [0], row_ends[:-1]]) if len(row_ends) else row_ends
    row_ends = np.minimum(row_ends, filled)
    # A segment begins where a document begins and where a row begins inside a document.
    first_rows = np.searchsorted(row_ends, starts, side="right")
    last_rows = np.searchsorted(row_ends, starts + lengths, side="left")
    counts = last_rows - first_rows + 1
    documents = np.repeat(np.arange(len(lengths)), counts)
    rows = np.repeat(first_rows, counts) + _within(counts)
    begins = np.maximum(starts[documents], row_starts[rows])
    ends = np.minimum((starts + lengths)[documents], row_ends[rows])
    return RowPlan(
        seq_length=seq_length,
        isolated=False,
        lengths=(row_ends - row_starts + 2).astype(np.uint16),
        segment_offsets=np.searchsorted(rows, np.arange(len(row_ends) + 1)),
        segment_columns=(begins - row_starts[rows] + 1).astype(np.uint16),
        segment_starts=offsets[documents] + begins - starts[documents],
        segment_lengths=(ends - begins).astype(np.uint16),
        dropped_tokens=0,
    )


def _lay_out(lengths: list[int], targets: _Targets) -> tuple[np.ndarray, int, np.ndarray]:
    """Where in the stream each document begins, how long the stream is, and where its rows end.

    A separator that would be the first token of a row is left out, since the end of the row before it separates
    already. One that is the last of its row stays, beside the row's own [SEP], to keep it full. So each start hangs
    on the one before: one number a document is left to a loop, everything else is vectorised.
    """
    ends = targets.ends()
    row_ends: list[int] = []
    starts: list[int] = []
    filled = end = 0  # `end` is that of the last row begun
    for length in lengths:
        filled += filled != end
        starts.append(filled)
        filled += length
        while end < filled:
            end = next(ends)
            row_ends.append(end)
    return np.array(starts, dtype=np.int64), filled, np.array(row_ends, dtype=np.int64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pieces:
    """Runs of one document's tokens, in the order of the documents."""

    starts: np.ndarray
    """i64, place of the first token in the token array."""
    lengths: np.ndarray
    """i64, tokens."""


def _cut(offsets: np.ndarray, lengths: np.ndarray, targets: _Targets, drop_remainder_below: int) -> _Pieces:
    """Cut every document into pieces of the targets' lengths; its last one is what is left."""
    more = targets.ends()
    ends = [0]  # ends[i] is where target i begins and target i - 1 ends
    first: list[int] = [0]  # first target of each document, and of one more
    for length in lengths.tolist():
        end = ends[first[-1]] + length
        while ends[-1] < end:
            ends.append(next(more))
        first.append(bisect_left(ends, end, first[-1]))
    begins = np.array(ends[: first[-1] + 1], dtype=np.int64)
    documents = np.repeat(np.arange(len(lengths)), np.diff(first))
    within = begins[:-1] - begins[np.array(first)[documents]]
    left = lengths[documents] - within
    sizes = np.minimum(np.diff(begins), left)
    kept = (sizes < left) | (sizes >= drop_remainder_below)
    return _Pieces(starts=(offsets[documents] + within)[kept], lengths=sizes[kept])


def _plan_isolated(pieces: _Pieces, seq_length: int, dropped: int) -> RowPlan:
    order = np.argsort(-pieces.lengths, kind="stable")  # longest first, then in the order of the documents
    rows, columns = _best_fit(pieces.lengths[order] + 2, seq_length)
    num_rows = int(rows.max()) + 1 if len(rows) else 0
    # Rows are numbered by their earliest piece, so that filling reads the token array mostly forwards.
    earliest = np.full(num_rows, len(order))
    np.minimum.at(earliest, rows, order)
    rows = np.argsort(np.argsort(earliest))[rows]
    by_row = np.lexsort((columns, rows))
    rows, columns, order = rows[by_row], columns[by_row], order[by_row]
    lengths = np.zeros(num_rows, dtype=np.int64)
    np.add.at(lengths, rows, pieces.lengths[order] + 2)
    return RowPlan(
        seq_length=seq_length,
        isolated=True,
        lengths=lengths.astype(np.uint16),
        segment_offsets=np.searchsorted(rows, np.arange(num_rows + 1)),
        segment_columns=(columns + 1).astype(np.uint16),
        segment_starts=pieces.starts[order],
        segment_lengths=pieces.lengths[order].astype(np.uint16),
        dropped_tokens=dropped,
    )


def _best_fit(sizes: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Best-fit-decreasing: [pieces] row and first column of each, for sizes that fall.

    Rows with the same room left are interchangeable, so whole groups of equal pieces go into whole groups of rows at
    once: time grows with the number of different sizes, not with the pieces (Krell et al. 2021, "Efficient Sequence
    Packing without Cross-contamination", pack histograms for the same reason).
    """
    rows = np.empty(len(sizes), dtype=np.int64)
    columns = np.empty(len(sizes), dtype=np.int64)
    open_rows: dict[int, list[np.ndarray]] = {}  # room left -> rows, in groups
    rooms: list[int] = []  # the keys of open_rows, rising

    def put_back(room: int, group: np.ndarray) -> None:
        if room and len(group):
            if room not in open_rows:
                insort(rooms, room)
                open_rows[room] = []
            open_rows[room].append(group)

    num_rows = 0
    values, firsts = np.unique(-sizes, return_index=True)
    groups = itertools.pairwise([*firsts.tolist(), len(sizes)])
    for size, (first, last) in zip((-values).tolist(), groups, strict=True):
        while first < last:
            place = bisect_left(rooms, size)
            room = rooms[place] if place < len(rooms) else capacity
            each = room // size  # the fullest row stays the fullest until no further piece fits
            needed = -(-(last - first) // each)
            if place < len(rooms):
                group = open_rows[room].pop()
                if not open_rows[room]:
                    del open_rows[room], rooms[place]
            else:
                group = np.arange(num_rows, num_rows + needed)
                num_rows += needed
            put_back(room, group[needed:])
            group = group[:needed]
            taken = min(len(group) * each, last - first)
            full, rest = divmod(taken, each)
            rows[first : first + taken] = np.repeat(group, each)[:taken]
            columns[first : first + taken] = capacity - room + size * (np.arange(taken) % each)
            put_back(room - each * size, group[:full])
            put_back(room - rest * size, group[full:])
            first += taken
    return rows, columns


def reordered(plan: RowPlan, order: np.ndarray) -> RowPlan:
    """The same rows in another order: row ``order[i]`` of the plan becomes row i."""
    counts = np.diff(plan.segment_offsets)[order]
    segments = ranges(plan.segment_offsets[order], counts)
    return dataclasses.replace(
        plan,
        lengths=plan.lengths[order],
        segment_offsets=np.concatenate([[0], np.cumsum(counts)]),
        segment_columns=plan.segment_columns[segments],
        segment_starts=plan.segment_starts[segments],
        segment_lengths=plan.segment_lengths[segments],
    )


def fill_rows(plan: RowPlan, first: int, last: int, tokens: np.ndarray, *, pad: int, cls: int, sep: int) -> Rows:
    """Make rows ``first`` up to ``last`` - 1 of the plan.

    Args:
        tokens: 1-d array of all documents' token ids, in memory or a memory map; the rows get its dtype.
    """
    low, high = plan.segment_offsets[first], plan.segment_offsets[last]
    offsets = plan.segment_offsets[first : last + 1] - low
    input_ids = np.full((last - first, plan.seq_length), pad, dtype=tokens.dtype)
    step = max(1, FILL_TOKENS // plan.seq_length)
    for start in range(first, last, step):
        stop = min(start + step, last)
        _fill(plan, start, stop, tokens, input_ids[start - first : stop - first], cls, sep)
    inner = np.ones(high - low, dtype=bool)
    inner[offsets[:-1]] = False  # a row's first segment is no boundary
    return Rows(
        input_ids=input_ids,
        lengths=plan.lengths[first:last],
        boundary_offsets=(offsets - np.arange(len(offsets))).astype(np.uint32),
        boundary_positions=plan.segment_columns[low:high][inner] - np.uint16(plan.isolated),
    )


def _fill(plan: RowPlan, first: int, last: int, tokens: np.ndarray, input_ids: np.ndarray, cls: int, sep: int) -> None:
    """Write rows ``first`` up to ``last`` - 1 into ``input_ids``, [rows, S], which holds padding."""
    flat = input_ids.reshape(-1)
    segments = slice(plan.segment_offsets[first], plan.segment_offsets[last])
    counts = plan.segment_lengths[segments].astype(np.int64)
    row_starts = np.arange(last - first) * plan.seq_length
    per_row = np.diff(plan.segment_offsets[first : last + 1])
    begins = np.repeat(row_starts, per_row) + plan.segment_columns[segments]
    steps = _within(counts)
    flat[np.repeat(begins, counts) + steps] = tokens[np.repeat(plan.segment_starts[segments], counts) + steps]
    flat[begins + counts] = sep
    flat[row_starts + plan.lengths[first:last] - 1] = sep
    flat[begins - 1 if plan.isolated else row_starts] = cls


def _within(counts: np.ndarray) -> np.ndarray:
    """0, 1, ... count - 1 for every count, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
