"""Map: clean and tokenize one part of the corpus into a stream of tokens and a table of its documents."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.config import PrepConfig
from data_prep.contract.shard_format import TOKENIZER
from data_prep.contract.tokenizer import load_tokenizer
from data_prep.corpus.documents import Document, Partition, Reject
from data_prep.corpus.reading import read_partition
from data_prep.filters.document_filter import DocumentFilter
from data_prep.filters.exact_duplicates import text_key
from data_prep.filters.near_duplicates import near_signature
from data_prep.filters.registry import open_filters
from data_prep.stages.records import committed, map_folder
from data_prep.stages.work_plan import WorkPlan
from data_prep.tokens.word_table import TextEncoder

BATCH_CHARACTERS = 1 << 19
"""Text a map task holds at once."""


def document_draw(document_id: str, purpose: str = "") -> float:
    """Uniform in [0, 1): the first 53 bits of the id's sha256, as many as a float holds."""
    digest = hashlib.sha256(f"{purpose}{document_id}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


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
def _encoder(work: Path, _plan_hash: str, dtype: str) -> TextEncoder:
    return TextEncoder(load_tokenizer(work / TOKENIZER), np.dtype(dtype))


@lru_cache(maxsize=1)
def _filters(_plan_hash: str, config: PrepConfig) -> list[DocumentFilter]:
    return open_filters(config)


def run_map(plan: WorkPlan, index: int) -> dict[str, Any]:
    """Clean and tokenize one part of the corpus; its record."""
    table = _DocumentTable()
    record: dict[str, Any] = {"read": 0, "not_sampled": 0, "rejects": {}, "smallest_left": 1.0}
    with committed(map_folder(plan, index), plan, record) as folder:
        with (folder / "tokens.bin").open("wb") as tokens, (folder / "rejects.jsonl").open("w") as rejects:

            def reject(item: Reject) -> None:
                record["rejects"][item.reason] = record["rejects"].get(item.reason, 0) + 1
                rejects.write(json.dumps(vars(item)) + "\n")

            kept = itertools.chain.from_iterable(
                _kept(plan, partition, record, reject) for partition in plan.tasks[index]
            )
            tokens.writelines(_encode_batch(plan, batch, table, reject).tobytes() for batch in _batches(kept))
        table.write(folder)
        record["documents"] = len(table.ids)
        for document_filter in _filters(plan.hash, plan.config):
            record |= document_filter.counts()
    return record


def _kept(
    plan: WorkPlan, partition: Partition, record: dict[str, Any], reject: Callable[[Reject], None]
) -> Iterator[tuple[Document, int]]:
    """(document, copies of it) of one partition; the others are counted."""
    file = plan.files[partition.file]
    weight = file.weight
    filters = _filters(plan.hash, plan.config)
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
        refused = _refused(item, filters)
        if refused is not None:
            reject(refused)
            continue
        draw = document_draw(item.id)
        if draw >= plan.config.validation_fraction:
            record["smallest_left"] = min(record["smallest_left"], draw)
        yield item, copies


def _refused(document: Document, filters: list[DocumentFilter]) -> Reject | None:
    """The reject of the first filter that drops the document, or None."""
    for document_filter in filters:
        detail = document_filter.refusal(document)
        if detail is not None:
            return Reject(id=document.key, reason=document_filter.reason, detail=detail, sample=document.text[:1000])
    return None


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
