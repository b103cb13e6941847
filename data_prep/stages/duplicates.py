"""Duplicates: decide, over the tables of all map tasks, which documents do not survive.

The tasks share out the values of a hash: equal texts, and texts that share a band, fall to one task whatever part of
the corpus they come from. Each reads one range of every map task's sorted table. ``survivors`` then goes
through the pairs of near-duplicates that the tasks found.

``survivors`` also decides, where ``validation_split`` is stratified, up to which draw the documents of each source are
held out: their number is known then.

A task leaves a table of dropped documents, rising, with the place of the id of the document that survives. A pack task
reads of every table the range that concerns its part.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.config import validation_fraction
from data_prep.corpus.documents import Reject
from data_prep.corpus.draws import draws_of, stratified_share
from data_prep.filters.exact_duplicates import KEY, equal_keys
from data_prep.filters.near_duplicates import (
    BAND_KEY,
    NUM_PERMUTATIONS,
    KeptSignatures,
    distinct_pairs,
    near_pairs,
    near_survivors,
)
from data_prep.filters.registry import LITTLE_LEFT
from data_prep.filters.rules.repeated_lines import RepeatedLines
from data_prep.stages.map import BANDS, DOCUMENTS, KEYS, SIGNATURES, DocumentTable, document_ids, read_documents
from data_prep.stages.records import (
    checked_folder,
    committed,
    document_starts,
    require_record,
    summary_of,
    task_folder,
)
from data_prep.stages.texts.hash_ranges import SortedTables, first_at_least
from data_prep.stages.work_plan import WorkPlan

PAIRS_AT_ONCE = 1 << 22
"""Pairs of near-duplicates that are read before those that several tasks found are thrown together."""

MOST_BANDS = 32
"""Bands of a document, about."""

_checked: set[Path] = set()
"""Folders whose files this process has compared with their hashes."""

DROPPED = np.dtype([("document", "<i8"), ("begin", "<u8"), ("length", "<u4"), ("validation", "u1")])
"""A document that does not survive, where the id of the one that does stands among the names, and whether that is one
of ``validation_paths`` while the first is not."""

TABLE, NAMES, PAIRS = "dropped.bin", "names.bin", "pairs.bin"


def run_duplicates(plan: WorkPlan, index: int) -> dict[str, Any]:
    """Find the duplicates in one range of the hashes; the first tasks look at exact ones, the others at near ones."""
    exact, near = summary_of(plan, "map")["duplicates_tasks"]
    record: dict[str, Any] = {}
    with committed(plan, "duplicates", index, record) as folder:
        if index < exact:
            documents, survivors = _exact(plan, index, exact)
            if not plan.config.duplicates.exact:
                trained_on = _in_validation(plan, documents, survivors)
                documents, survivors = documents[trained_on], survivors[trained_on]
            record["dropped"] = _write_dropped(plan, folder, documents, survivors)
        else:
            pairs = _near(plan, index - exact, near)
            pairs.tofile(folder / PAIRS)
            record["pairs"] = len(pairs)
    return record


def run_survivors(plan: WorkPlan) -> dict[str, Any]:
    """Decide, over all pairs of near-duplicates, which documents survive; check what the duplicates tasks left."""
    exact, near = summary_of(plan, "map")["duplicates_tasks"]
    record: dict[str, Any] = {}
    with committed(plan, "survivors", 0, record) as folder:
        for index in range(exact):  # all are checked here, once: pack tasks read a small part of each
            checked_folder(plan, "duplicates", index)
        documents, survivors = near_survivors(_all_pairs(plan, range(exact, exact + near)))
        record["dropped"] = _write_dropped(plan, folder, documents, survivors)
        if plan.config.validation_split == "stratified":
            record["held_out"] = _held_out(plan, folder)
    return record


def _held_out(plan: WorkPlan, near: Path) -> dict[str, float]:
    """Source -> the highest draw of its documents that are held out; of a document for each, all others are above.

    No more draws are in memory than documents can be held out. ``near`` has the table of dropped near-duplicates.
    """
    fraction, sources = validation_fraction(plan.config), summary_of(plan, "map")["sources"]
    lowest: dict[int, np.ndarray] = {}
    documents: Counter[int] = Counter()
    for part in range(plan.validation_tasks, plan.num_tasks):
        table = read_documents(checked_folder(plan, "map", part, DOCUMENTS))
        left = np.setdiff1d(np.arange(len(table.column("length"))), dropped_documents(plan, part, table, near)[0])
        draws, of_source = draws_of(table.ids(left)), table.column("source")[left]
        for source in np.unique(of_source).tolist():
            found = np.unique(draws[of_source == source])  # pieces of a document are one
            documents[source] += len(found)
            most = stratified_share(sources[str(source)]["read"], fraction)
            lowest[source] = np.sort(np.concatenate([lowest.get(source, found[:0]), found]))[:most]
    shares = {source: stratified_share(count, fraction) for source, count in documents.items()}
    return {str(source): float(lowest[source][share - 1]) for source, share in shares.items() if share}


def held_out_documents(plan: WorkPlan, table: DocumentTable) -> np.ndarray:
    """[documents] bool, which documents of a map task are of the validation split."""
    held_out = table.column("validation") == 1
    if plan.config.validation_split == "stratified":
        limits = require_record(plan, "survivors", 0)["held_out"]
        draws = draws_of(table.ids(np.arange(len(held_out))))
        held_out |= draws <= np.array([limits.get(str(source), -1.0) for source in table.column("source").tolist()])
    return held_out


def _all_pairs(plan: WorkPlan, tasks: range) -> np.ndarray:
    """[pairs, 2] i64, each pair that these tasks found once; documents of one template meet in most of them."""
    pairs = np.empty((0, 2), dtype=np.int64)
    waiting: list[np.ndarray] = []
    for index in tasks:
        path = checked_folder(plan, "duplicates", index) / PAIRS
        waiting.append(np.fromfile(path, dtype="<i8").reshape(-1, 2))
        if sum(map(len, waiting)) > max(len(pairs), PAIRS_AT_ONCE):
            pairs, waiting = distinct_pairs([pairs, *waiting]), []
    return distinct_pairs([pairs, *waiting])


def dropped_documents(
    plan: WorkPlan, part: int, table: DocumentTable, near: Path | None = None
) -> tuple[np.ndarray, Iterator[Reject]]:
    """The documents of a map task that do not survive: their rows, and their rejects. Of those that are no duplicates
    too little is left.

    ``near`` has the table of dropped near-duplicates, where the task that makes it has not committed yet.
    """
    exact, _ = summary_of(plan, "map")["duplicates_tasks"]
    starts = document_starts(plan)
    low, high = int(starts[part]), int(starts[part + 1])
    if near is None:
        near = task_folder(plan, "survivors", 0)
        if near not in _checked:  # once for each process: it is read by every pack task
            checked_folder(plan, "survivors", 0)
            _checked.add(near)
    # row -> reason, id of the document that survives
    found = {row: ("near_duplicate", name) for row, name, _ in _read_dropped(near, low, high)}
    for index in range(exact):
        for row, name, in_validation in _read_dropped(task_folder(plan, "duplicates", index), low, high):
            found[row] = ("in_validation" if in_validation else "duplicate", name)
    repeats = table.repeats.tolist()
    firsts = table.ids(table.repeats[:, 1])
    for (row, first), name in zip(repeats, firsts, strict=True):
        reason, survivor = found.get(first, ("duplicate", name))
        if reason == "in_validation" or plan.config.duplicates.exact:
            found[row] = ("in_validation" if reason == "in_validation" else "duplicate", survivor)
    details = {row: (reason, f"of {name}") for row, (reason, name) in found.items()}
    limit = f"cleaning.min_characters is {plan.config.cleaning.min_characters}"
    for row in np.flatnonzero(table.little_left).tolist():
        left = f"{table.column('characters')[row]} characters are left, {limit}"
        details.setdefault(row, (f"{RepeatedLines.reason}.{LITTLE_LEFT}", left))
    rows = np.array(sorted(details), dtype=np.int64)
    ids = table.ids(rows)
    rejects = (
        Reject(id=name, reason=details[row][0], detail=details[row][1], sample="")
        for row, name in zip(rows.tolist(), ids, strict=True)
    )
    return rows, rejects


def _exact(plan: WorkPlan, number: int, of: int) -> tuple[np.ndarray, np.ndarray]:
    """[d] documents whose text an earlier one has, rising, and that one."""
    dtypes = {"high": np.dtype("<u8"), "low": np.dtype("<u8"), "documents": np.dtype("<i8")}
    starts = document_starts(plan)
    tables = SortedTables(plan, "map", KEYS, KEY, "high", starts, entries=int(starts[-1]))
    scratch = plan.work / "duplicates"
    found = [equal_keys(**columns) for columns in tables.buckets(number, of, dtypes, scratch)]
    documents, survivors = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.argsort(documents)
    return documents[order], survivors[order]


def _in_validation(plan: WorkPlan, documents: np.ndarray, survivors: np.ndarray) -> np.ndarray:
    """[d] bool, whether a document of the corpus does not survive because of one of ``validation_paths``."""
    first = document_starts(plan)[plan.validation_tasks]
    return (survivors < first) & (documents >= first)


def _near(plan: WorkPlan, number: int, of: int) -> np.ndarray:
    """[pairs, 2] i64, near-duplicates that share a band."""
    threshold = plan.config.duplicates.near_threshold
    assert threshold is not None  # otherwise there is no such task
    pairs: list[np.ndarray] = []
    dtypes = {"key": np.dtype("<u8"), "documents": np.dtype("<i8")}
    signatures = KeptSignatures(lambda documents: _read_signatures(plan, documents))
    starts = document_starts(plan)
    tables = SortedTables(plan, "map", BANDS, BAND_KEY, "key", starts, entries=MOST_BANDS * int(starts[-1]))
    for columns in tables.buckets(number, of, dtypes, plan.work / "duplicates"):
        order = np.lexsort((columns["documents"], columns["key"]))
        pairs.append(near_pairs(columns["key"][order], columns["documents"][order], signatures.of, threshold))
    return distinct_pairs(pairs)


def _read_signatures(plan: WorkPlan, documents: np.ndarray) -> np.ndarray:
    """[n, 128] u32, the signatures of [n] rising documents of any map tasks."""
    starts = document_starts(plan)
    rows = np.empty((len(documents), NUM_PERMUTATIONS), dtype=np.uint32)
    for part, here in _by_part(starts, documents):
        path = task_folder(plan, "map", part) / SIGNATURES
        table = np.memmap(path, dtype="<u4", mode="r").reshape(-1, NUM_PERMUTATIONS)
        rows[here] = table[documents[here] - starts[part]]
    return rows


def _by_part(starts: np.ndarray, documents: np.ndarray) -> Iterator[tuple[int, slice]]:
    """Each map task that has some of the rising documents, and the stretch of them that it has."""
    parts, begins = np.unique(np.searchsorted(starts, documents, side="right") - 1, return_index=True)
    limits = np.append(begins, len(documents)).tolist()
    for part, begin, end in zip(parts.tolist(), limits[:-1], limits[1:], strict=True):
        yield part, slice(begin, end)


def _write_dropped(plan: WorkPlan, folder: Path, documents: np.ndarray, survivors: np.ndarray) -> int:
    """Write a table of dropped documents, rising, and the ids of those that survive, each once; how many they are."""
    starts = document_starts(plan)
    wanted, which = np.unique(survivors, return_inverse=True)
    lengths = [np.empty(0, dtype=np.int64)]
    with (folder / NAMES).open("wb") as stream:
        for part, here in _by_part(starts, wanted):
            names = document_ids(task_folder(plan, "map", part), wanted[here] - starts[part])
            encoded = [name.encode() for name in names]
            stream.writelines(encoded)
            lengths.append(np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded)))
    sizes = np.concatenate(lengths)
    table = np.empty(len(documents), dtype=DROPPED)
    table["document"], table["begin"], table["length"] = documents, (np.cumsum(sizes) - sizes)[which], sizes[which]
    table["validation"] = _in_validation(plan, documents, survivors)
    table.tofile(folder / TABLE)
    return len(documents)


def _read_dropped(folder: Path, low: int, high: int) -> Iterator[tuple[int, str, bool]]:
    """Of the dropped documents from ``low`` on and below ``high``: row from ``low`` on, the id of the one that
    survives, and ``validation`` of ``DROPPED``."""
    if not (folder / TABLE).stat().st_size:
        return
    table = np.memmap(folder / TABLE, dtype=DROPPED, mode="r")
    documents = table["document"]
    entries = np.array(table[first_at_least(documents, low) : first_at_least(documents, high)])
    with (folder / NAMES).open("rb") as stream:
        for document, begin, length, validation in entries.tolist():
            stream.seek(begin)
            yield document - low, stream.read(length).decode(), bool(validation)
