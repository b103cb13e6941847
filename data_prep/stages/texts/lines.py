"""Lines and repeated: which lines of a part of the corpus stand in an earlier document, before any is tokenized.

Documents count as all filters leave them, and a line is compared as ``repeatable`` says. A ``lines`` task leaves the
lines of its part, each once, with the first document of the part that has it. ``repeated`` tasks share out the values
of a hash of the lines, as ``duplicates`` does with texts, and find those that an earlier part has already. A map task
then knows of every line of its part whether an earlier document of the corpus has it.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from data_prep.arrays.mapped_array import MappedArray
from data_prep.corpus.documents import Document, Reject
from data_prep.corpus.draws import copies_of
from data_prep.filters.exact_duplicates import KEY, equal_keys
from data_prep.filters.registry import filtered
from data_prep.filters.rules.repeated_lines import repeatable
from data_prep.filters.word_ngrams import as_bytes
from data_prep.stages.records import (
    checked_folder,
    committed,
    damaged,
    number_of_tasks,
    require_record,
    summary_of,
    task_folder,
)
from data_prep.stages.texts.hash_ranges import SortedTables
from data_prep.stages.texts.kept import put, taken_over
from data_prep.stages.texts.reading import filters_of, read_planned
from data_prep.stages.work_plan import WorkPlan, map_task

LINES, BEARERS = "lines.bin", "bearers.bin"
"""Of a ``lines`` task: ``KEY`` of each line, rising, ``row`` its own number; u32, the first document that has it."""

ROWS, INDEX = "rows.bin", "index.bin"
"""Of a ``repeated`` task: u32, numbers of lines, part after part; ``PART`` of each part and one more."""

PART = np.dtype([("begin", "<i8"), ("check", "<u8")])
"""Where the numbers of a part begin, and their hash (xxh3)."""

HELD_LINES = 1 << 20
"""Lines that a task holds before those that repeat are thrown together."""


class LineTable:
    """The lines of one part of the corpus, each once, while they are found."""

    def __init__(self) -> None:
        self._keys = np.empty((0, 2), dtype=np.uint64)
        self._bearers = np.empty(0, dtype=np.uint32)
        self._new = bytearray()
        self._new_bearers: list[np.ndarray] = []

    def add(self, keys: list[bytes], document: int) -> None:
        """The ``line_keys`` of a document; documents come in their order."""
        self._new += b"".join(keys)
        self._new_bearers.append(np.full(len(keys), document, dtype=np.uint32))
        if len(self._new) >= 16 * HELD_LINES:
            self._merge()

    def _merge(self) -> None:
        new = np.frombuffer(bytes(self._new), dtype="<u8").reshape(-1, 2)
        keys = np.concatenate([self._keys, new])
        bearers = np.concatenate([self._bearers, *self._new_bearers])
        order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable, so documents rise among equal keys
        keys, bearers = keys[order], bearers[order]
        firsts = np.ones(len(keys), dtype=bool)
        firsts[1:] = (keys[1:] != keys[:-1]).any(axis=1)
        self._keys, self._bearers = keys[firsts], bearers[firsts]
        self._new, self._new_bearers = bytearray(), []

    def columns(self) -> tuple[np.ndarray, np.ndarray]:
        """[lines] ``KEY``, rising, and [lines] u32, the first document that has each."""
        self._merge()
        table = np.empty(len(self._keys), dtype=KEY)
        table["high"], table["low"], table["row"] = self._keys[:, 0], self._keys[:, 1], np.arange(len(table))
        return table, self._bearers


def line_keys(text: str, min_characters: int) -> list[bytes | None]:
    """Of each line of a text, 16 bytes that are equal for equal lines (xxh3_128); None where it may be repeated."""
    lines = (repeatable(line, min_characters) for line in text.split("\n"))
    return [None if line is None else xxhash.xxh3_128_digest(as_bytes(line)) for line in lines]


def run_lines(plan: WorkPlan, index: int) -> dict[str, Any]:
    """Find the lines of one part of the corpus, or take over what an earlier preparation found; its record."""
    kept = map_task(plan, index).kept
    if kept is not None:
        return taken_over(plan, "lines", index, Path(kept), (LINES, BEARERS))
    min_characters = plan.config.filters.repeated_lines.min_characters
    record: dict[str, Any] = {"documents": 0}
    with committed(plan, "lines", index, record) as folder:
        table = LineTable()
        for number, document in enumerate(_documents(plan, index)):
            keys = line_keys(document.text, min_characters)
            table.add([key for key in keys if key is not None], number)
            record["documents"] = number + 1
        lines, bearers = table.columns()
        lines.tofile(folder / LINES)
        bearers.tofile(folder / BEARERS)
        record["lines"] = len(lines)
    return record


def _documents(plan: WorkPlan, index: int) -> Iterator[Document]:
    """The documents that map looks for repeated lines in."""
    filters = filters_of(plan)
    for partition, found in map_task(plan, index).partitions:
        for item in read_planned(plan, partition, found):
            if isinstance(item, Document) and copies_of(item.id, found.file.weight):
                judged = filtered(item, filters, plan.config.cleaning.min_characters) if filters else item
                if not isinstance(judged, Reject):
                    yield judged


def run_repeated(plan: WorkPlan, index: int) -> dict[str, Any]:
    """Find the lines in one range of the hashes that an earlier part of the corpus has; its record."""
    of = number_of_tasks(plan, "repeated")
    for part in range(index, plan.num_tasks, of):  # all are checked here, once: of each a task reads a small part
        checked_folder(plan, "lines", part)
    starts = np.cumsum([0, *summary_of(plan, "lines")["lines"]], dtype=np.int64)
    tables = SortedTables(plan, "lines", LINES, KEY, "high", starts, entries=int(starts[-1]))
    dtypes = {"high": np.dtype("<u8"), "low": np.dtype("<u8"), "documents": np.dtype("<i8")}
    record: dict[str, Any] = {}
    with committed(plan, "repeated", index, record) as folder:
        # A line stands in the table of a part once: what repeats another comes from a later part.
        found = [equal_keys(**columns)[0] for columns in tables.buckets(index, of, dtypes, plan.work / "repeated")]
        lines = np.sort(np.concatenate(found))
        begins = np.searchsorted(lines, starts)
        numbers = (lines - np.repeat(starts[:-1], np.diff(begins))).astype("<u4")
        parts = np.zeros(len(begins), dtype=PART)
        parts["begin"] = begins
        for part, (begin, end) in enumerate(zip(begins[:-1].tolist(), begins[1:].tolist(), strict=True)):
            parts["check"][part] = xxhash.xxh3_64_intdigest(numbers[begin:end].data)
        numbers.tofile(folder / ROWS)
        parts.tofile(folder / INDEX)
        record["lines"] = len(lines)
    return record


def _repeated_in(plan: WorkPlan, task: int, part: int) -> np.ndarray:
    """[n] u32, lines of a part that a ``repeated`` task found in an earlier one."""
    require_record(plan, "repeated", task)
    folder = task_folder(plan, "repeated", task)
    (begin, check), (end, _) = np.fromfile(folder / INDEX, dtype=PART, count=2, offset=part * PART.itemsize).tolist()
    numbers = MappedArray(folder / ROWS, np.dtype("<u4")).array[begin:end]
    if len(numbers) != end - begin or xxhash.xxh3_64_intdigest(numbers.data) != check:
        damaged(plan, "repeated", task, f"the lines of part {part} have another hash")
    return numbers


class Shortened(NamedTuple):
    """A document without the lines that an earlier one has."""

    document: Document
    """What is left."""
    lines: int
    """Lines that were taken out."""
    characters: int
    """Their characters."""


class EarlierLines:
    """Which lines of one part of the corpus stand in an earlier document."""

    def __init__(self, plan: WorkPlan, part: int) -> None:
        """Read what was found; its documents are then asked for one after the other.

        Raises:
            DamagedTask: what a task of ``lines`` or ``repeated`` left is damaged.
        """
        self._plan, self._part = plan, part
        self._documents = 0
        self._min_characters = plan.config.filters.repeated_lines.min_characters
        self._folder = checked_folder(plan, "lines", part)
        table = np.fromfile(self._folder / LINES, dtype=KEY)
        self._high, self._low = np.ascontiguousarray(table["high"]), np.ascontiguousarray(table["low"])
        self._bearers = np.fromfile(self._folder / BEARERS, dtype="<u4")
        self._in_earlier_part = np.zeros(len(table), dtype=bool)
        for task in range(number_of_tasks(plan, "repeated")):
            self._in_earlier_part[_repeated_in(plan, task, part)] = True

    def __len__(self) -> int:
        return len(self._high)

    def put(self, folder: Path) -> None:
        """Leave the lines of the part in another folder too, where a later preparation takes them over."""
        for name in (LINES, BEARERS):
            put(self._folder / name, folder / name)

    def taken_out(self, document: Document) -> Shortened:
        """The next document without the lines that an earlier one has."""
        lines = document.text.split("\n")
        keys = line_keys(document.text, self._min_characters)
        places = [place for place, key in enumerate(keys) if key is not None]
        rows = self._rows(b"".join(key for key in keys if key is not None))
        earlier = self._in_earlier_part[rows] | (self._bearers[rows] < self._documents)
        self._documents += 1
        out = {place for place, found in zip(places, earlier.tolist(), strict=True) if found}
        if not out:
            return Shortened(document, 0, 0)
        left = "\n".join(line for place, line in enumerate(lines) if place not in out).strip()
        characters = sum(len(lines[place]) for place in out)
        return Shortened(dataclasses.replace(document, text=left), len(out), characters)

    def _rows(self, keys: bytes) -> np.ndarray:
        """[n] i64, where the table has each of n keys."""
        high, low = np.frombuffer(keys, dtype="<u8").reshape(-1, 2).T
        rows = np.searchsorted(self._high, high)
        others = np.arange(len(rows))  # whose row is not found yet
        while len(others):
            missing = rows[others] >= len(self._high)
            missing[~missing] = self._high[rows[others][~missing]] != high[others][~missing]
            if missing.any():
                damaged(self._plan, "lines", self._part, "a line is missing")
            others = others[self._low[rows[others]] != low[others]]
            rows[others] += 1  # lines that share half of their hash stand side by side
        return rows
