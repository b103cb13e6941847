"""The tasks that turn a corpus into shards: map, duplicates, pack, order, reduce.

A task reads what earlier ones committed and commits its own result by a rename, so it can be killed at any
point, run twice, and run on any machine that sees the work folder:

    map/000003/         a part of the corpus, cleaned and tokenized: tokens.bin and a table of documents
    duplicates/         which documents of every part survive
    pack/000003/        the part's surviving documents as rows
    order/              the rows of a split in their global order
    reduce/00002.json   the manifest's entry of one shard, which stands in the work folder itself

What a task makes follows from the plan and its number alone: workers, machines and order do not matter.
"""

import contextlib
import hashlib
import itertools
import json
import mmap
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.config import PrepConfig, as_tuple, chunk_rows
from data_prep.contract.shard_writing import write_shard
from data_prep.contract.shards import SPLITS, TOKENIZER
from data_prep.contract.tokenizer import continues_word, load_tokenizer, ordinary_ids
from data_prep.corpus.documents import Document, Partition, Reject
from data_prep.corpus.reading import read_partition, read_texts
from data_prep.filters.duplicates import exact_survivors, near_signature, near_survivors, text_key
from data_prep.filters.evaluation_ngrams import EvaluationNgrams, evaluation_files
from data_prep.report.statistics import document_statistics, mask_statistics, merge
from data_prep.rows.masking import mask_rows
from data_prep.rows.packing import RowPlan, Rows, fill_rows, plan_rows
from data_prep.rows.random_streams import stream_keys
from data_prep.stages.work_plan import WorkPlan
from data_prep.tokens.word_table import TextEncoder

BATCH_CHARACTERS = 1 << 19
"""Text a map task holds at once"""

FILL_ROWS = 1 << 15
"""Rows a pack task holds at once"""

GATHER_ROWS = 1 << 7
"""Rows a reduce task reads of one file at once: each may bring a large page, up to 2 MB, of the file into memory"""

ORDER_ROWS = 1 << 22
"""Rows whose order is made at once"""

SHUFFLE_STREAM = 1 << 40
"""Variant number, beyond any real one, whose stream keys order the rows"""

RECORD = "record.json"


def document_draw(document_id: str, purpose: str = "") -> float:
    """Uniform in [0, 1): the first 53 bits of the id's sha256, as many as a float holds."""
    digest = hashlib.sha256(f"{purpose}{document_id}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


@contextlib.contextmanager
def _committed(folder: Path, plan: WorkPlan, record: dict[str, Any]) -> Iterator[Path]:
    """A temporary folder that becomes `folder`, with its record, when the body ends well."""
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    (temporary / RECORD).write_text(json.dumps({"plan": plan.hash, **record}, sort_keys=True))
    try:
        os.rename(temporary, folder)
    except OSError:
        if not (folder / RECORD).is_file():
            raise
        shutil.rmtree(temporary)  # another process has committed the same result meanwhile


def read_record(path: Path, plan: WorkPlan) -> dict[str, Any] | None:
    """The record of a committed task of this plan, or None."""
    try:
        record = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return record if record.get("plan") == plan.hash else None


def map_folder(plan: WorkPlan, index: int) -> Path:
    """Where map task `index` commits."""
    return plan.work / "map" / f"{index:06d}"


def pack_folder(plan: WorkPlan, index: int) -> Path:
    """Where pack task `index` commits."""
    return plan.work / "pack" / f"{index:06d}"


def reduce_record(plan: WorkPlan, index: int) -> Path:
    """The record of reduce task `index`."""
    return plan.work / "reduce" / f"{index:05d}.json"


class _Mapped:
    """A file of numbers, mapped into memory."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self._pages: mmap.mmap | None = None
        self.array = np.empty(0, dtype=dtype)
        """[numbers] read-only"""
        if path.stat().st_size:  # an empty file cannot be mapped
            with open(path, "rb") as stream:
                self._pages = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            self.array = np.frombuffer(self._pages, dtype=dtype)

    def forget_pages(self) -> None:
        """Stop counting what was read as this process's memory; the next look reads it from the file again."""
        if self._pages is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._pages.madvise(mmap.MADV_DONTNEED)


class _DocumentTable:
    """The kept documents of one map task, column by column."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.columns: dict[str, list[Any]] = {
            name: [] for name in ("length", "characters", "words", "unknown", "validation", "copies")
        }
        self.keys: list[bytes] = []
        self.signatures: list[np.ndarray] = []

    def write(self, folder: Path) -> None:
        np.save(folder / "table.npy", np.array(list(self.columns.values()), dtype=np.int64).reshape(6, -1))
        np.save(folder / "keys.npy", np.frombuffer(b"".join(self.keys), dtype="<u8").reshape(-1, 2))
        np.save(folder / "signatures.npy", np.array(self.signatures))
        (folder / "ids.json").write_text(json.dumps(self.ids))


def read_table(folder: Path) -> dict[str, np.ndarray]:
    """Columns of the kept documents of a map task: [documents] i64 each."""
    names = ("length", "characters", "words", "unknown", "validation", "copies")
    return dict(zip(names, np.load(folder / "table.npy"), strict=True))


@lru_cache(maxsize=1)
def _encoder(work: Path, plan_hash: str, dtype: str) -> TextEncoder:
    return TextEncoder(load_tokenizer(work / TOKENIZER), np.dtype(dtype))


@lru_cache(maxsize=1)
def _evaluation_ngrams(work: Path, plan_hash: str, config: PrepConfig) -> EvaluationNgrams | None:
    if not as_tuple(config.duplicates.evaluation_paths):
        return None
    texts = read_texts(evaluation_files(config), config)
    return EvaluationNgrams.of(texts, config.duplicates.evaluation_ngram)


def run_map(plan: WorkPlan, index: int) -> dict[str, Any]:
    """Clean and tokenize one part of the corpus; its record."""
    table = _DocumentTable()
    record: dict[str, Any] = {"read": 0, "not_sampled": 0, "rejects": {}, "smallest_left": 1.0}
    with _committed(map_folder(plan, index), plan, record) as folder:
        with open(folder / "tokens.bin", "wb") as tokens, open(folder / "rejects.jsonl", "w") as rejects:

            def reject(item: Reject) -> None:
                record["rejects"][item.reason] = record["rejects"].get(item.reason, 0) + 1
                rejects.write(json.dumps(vars(item)) + "\n")

            kept = itertools.chain.from_iterable(
                _kept(plan, partition, record, reject) for partition in plan.tasks[index]
            )
            for batch in _batches(kept):
                tokens.write(_encode_batch(plan, batch, table, reject).tobytes())
        table.write(folder)
        record["documents"] = len(table.ids)
        ngrams = _evaluation_ngrams(plan.work, plan.hash, plan.config)
        record["unchecked_evaluation_texts"] = ngrams.too_short if ngrams else 0
    return record


def _kept(
    plan: WorkPlan, partition: Partition, record: dict[str, Any], reject: Callable[[Reject], None]
) -> Iterator[tuple[Document, int]]:
    """(document, copies of it) of one partition; the others are counted."""
    file = plan.files[partition.file]
    weight = file.weight
    ngrams = _evaluation_ngrams(plan.work, plan.hash, plan.config)
    for item in read_partition(file, partition, plan.config.corpus, plan.config.cleaning):
        record["read"] += 1
        if isinstance(item, Reject):
            reject(item)
            continue
        copies = int(weight)
        if weight > copies:
            copies += document_draw(item.id, "weight:") < weight - copies
        if not copies:
            record["not_sampled"] += 1
            continue
        shared = ngrams.shared(item.text) if ngrams else None
        if shared is not None:
            reject(Reject(id=item.key, reason="contaminated", detail=f"shares '{shared}'", sample=item.text[:1000]))
            continue
        draw = document_draw(item.id)
        if draw >= plan.config.validation_fraction:
            record["smallest_left"] = min(record["smallest_left"], draw)
        yield item, copies


def _batches(items: Iterable[tuple[Document, int]]) -> Iterator[list[tuple[Document, int]]]:
    batch: list[tuple[Document, int]] = []
    size = 0
    for item in items:
        batch.append(item)
        size += len(item[0].text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode_batch(
    plan: WorkPlan, batch: list[tuple[Document, int]], table: _DocumentTable, reject: Callable[[Reject], None]
) -> np.ndarray:
    """Tokens of a batch; its documents go into the table."""
    encoder = _encoder(plan.work, plan.hash, plan.geometry.token_dtype.str)
    tokens, lengths = encoder.encode([document.text for document, _ in batch])
    unknown = np.concatenate([[0], np.cumsum(tokens == plan.special_ids["unk"])])
    ends = np.cumsum(lengths)
    for (document, copies), length, end in zip(batch, lengths.tolist(), ends.tolist(), strict=True):
        if not length:
            reject(Reject(id=document.key, reason="no_tokens", detail="", sample=document.text[:1000]))
            continue
        table.ids.append(document.key)
        table.keys.append(text_key(document.text))
        validation = document_draw(document.id) < plan.config.validation_fraction
        row = (
            length,
            len(document.text),
            len(document.text.split()),
            int(unknown[end] - unknown[end - length]),
            validation,
            copies,
        )
        for column, value in zip(table.columns.values(), row, strict=True):
            column.append(value)
        if plan.config.duplicates.near_threshold is not None:
            table.signatures.append(near_signature(document.text))
    return tokens


def run_duplicates(plan: WorkPlan) -> dict[str, Any]:
    """Decide which documents survive: of equal texts the first; the record counts the others."""
    folders = [map_folder(plan, index) for index in range(len(plan.tasks))]
    keys = [np.load(folder / "keys.npy", mmap_mode="r") for folder in folders]
    duplicates = plan.config.duplicates
    record: dict[str, Any] = {"rejects": {}}
    with _committed(plan.work / "duplicates", plan, record) as folder, open(folder / "rejects.jsonl", "w") as rejects:
        none = [np.full(len(part), -1, dtype=np.int64) for part in keys]
        exact = exact_survivors(keys) if duplicates.exact else none
        alive = [part < 0 for part in exact]
        near = none
        if duplicates.near_threshold is not None:
            signatures = [
                np.load(f / "signatures.npy") if len(k) else np.empty((0, 128))
                for f, k in zip(folders, keys, strict=True)
            ]
            near = near_survivors(signatures, alive, duplicates.near_threshold)
        starts = np.cumsum([0, *map(len, keys)])
        for index, (first, second) in enumerate(zip(exact, near, strict=True)):
            np.save(folder / f"{index:06d}.npy", (first < 0) & (second < 0))
            for reason, survivors in (("duplicate", first), ("near_duplicate", second)):
                for reject in _duplicate_rejects(plan, index, survivors, starts, reason):
                    record["rejects"][reason] = record["rejects"].get(reason, 0) + 1
                    rejects.write(json.dumps(vars(reject)) + "\n")
    return record


def _duplicate_rejects(
    plan: WorkPlan, index: int, survivors: np.ndarray, starts: np.ndarray, reason: str
) -> Iterator[Reject]:
    dead = np.flatnonzero(survivors >= 0)
    if not len(dead):
        return
    ids = _document_ids(map_folder(plan, index))
    for row in dead.tolist():
        part = int(np.searchsorted(starts, survivors[row], side="right")) - 1
        first = _document_ids(map_folder(plan, part))[int(survivors[row] - starts[part])]
        yield Reject(id=ids[row], reason=reason, detail=f"of {first}", sample="")


@lru_cache(maxsize=64)
def _document_ids(folder: Path) -> list[str]:
    return json.loads((folder / "ids.json").read_text())


def run_pack(plan: WorkPlan, index: int) -> dict[str, Any]:
    """Pack the surviving documents of one map task into rows; its record."""
    source = map_folder(plan, index)
    table = read_table(source)
    keep = np.load(plan.work / "duplicates" / f"{index:06d}.npy")
    dtype = plan.geometry.token_dtype
    tokens = _Mapped(source / "tokens.bin", dtype)
    record: dict[str, Any] = {"rows": {}, "documents": {}, "tokens": {}, "dropped_tokens": 0}
    with _committed(pack_folder(plan, index), plan, record) as folder:
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


def _write_rows(folder: Path, split: str, rows: RowPlan, tokens: "_Mapped", plan: WorkPlan) -> int:
    special = plan.special_ids
    lengths, counts, positions = [], [], []
    total = len(rows.lengths)
    with open(folder / f"{split}.bin", "wb") as stream:
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


def run_order(plan: WorkPlan, rows: dict[str, list[int]]) -> dict[str, Any]:
    """Write the global order of each split's rows; the record lists the reduce tasks as (split, shard).

    A sequence id is (map task << 32) + row, train rows before validation rows. Rows are sorted by a hash of
    (seed, sequence id): a permutation that needs no generator, and so does not depend on the version of one.

    Args:
        rows: split -> rows of each map task.
    """
    record: dict[str, Any] = {"tasks": []}
    with _committed(plan.work / "order", plan, record) as folder:
        for split in SPLITS:
            first = [0] * len(plan.tasks) if split == SPLITS[0] else rows[SPLITS[0]]
            total = sum(rows[split])
            with open(folder / f"{split}.bin", "wb") as stream:
                for piece in _ordered(plan.config.seed, first, rows[split]):
                    stream.write(piece.tobytes())
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


def run_reduce(plan: WorkPlan, index: int, tasks: list[list[Any]]) -> dict[str, Any]:
    """Gather, mask and write the rows of one shard; its record holds its entry in the manifest."""
    split, shard = tasks[index]
    size = plan.config.rows_per_shard
    order = np.memmap(plan.work / "order" / f"{split}.bin", dtype="<u8", mode="r")
    sequence_ids = np.array(order[shard * size : (shard + 1) * size])
    statistics: list[dict[str, Any]] = []
    chunks = _chunks(plan, sequence_ids, _gather(plan, split, sequence_ids), statistics)
    entry = write_shard(plan.work, split, shard, chunks)
    record = {"plan": plan.hash, "split": split, "entry": entry, "statistics": merge(statistics)}
    path = reduce_record(plan, index)
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.partial")
    temporary.write_text(json.dumps(record, sort_keys=True))
    os.replace(temporary, path)
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
        rows = _Mapped(folder / f"{split}.bin", input_ids.dtype)
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
def _token_classes(work: Path, plan_hash: str, unit: str) -> tuple[np.ndarray, np.ndarray | None]:
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
