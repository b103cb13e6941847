"""Map: clean and tokenize one part of the corpus into a stream of tokens and a table of its documents."""

import contextlib
import gzip
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from data_prep.config import validation_fraction
from data_prep.contract.files import safetensors_written_to
from data_prep.contract.shard_format import TOKENIZER
from data_prep.contract.tokenizer import load_tokenizer
from data_prep.corpus.documents import Document, Partition, Reject
from data_prep.corpus.draws import copies_of, document_draw
from data_prep.corpus.written_texts import TextFile
from data_prep.filters.exact_duplicates import key_table, text_key
from data_prep.filters.near_duplicates import NUM_PERMUTATIONS, band_table, near_signature
from data_prep.filters.registry import filtered
from data_prep.report.statistics import count_language, count_tokens_of_language, merge
from data_prep.stages.records import committed
from data_prep.stages.texts.kept import taken_over
from data_prep.stages.texts.lines import EarlierLines
from data_prep.stages.texts.reading import filters_of, read_planned
from data_prep.stages.work_plan import SurveyedFile, WorkPlan, map_task
from data_prep.tokens.losses import stripped_marks
from data_prep.tokens.word_table import TextEncoder

BATCH_CHARACTERS = 1 << 19
"""Text a map task holds at once."""

SAMPLED_DOCUMENTS = 8
"""Of so many documents one is looked at for accents that the tokenizer strips."""


COLUMNS = ("length", "characters", "words", "unknown", "validation", "copies", "source")

DOCUMENTS, KEYS, SIGNATURES, BANDS = "documents.safetensors", "keys.bin", "signatures.bin", "bands.bin"

REJECTS_PART, TEXT = "rejects.jsonl.gz", "text.parquet"


LINE_COLUMNS = ("lines_out", "characters_out")
"""Beside them with ``filters.repeated_lines.across_documents``: what was taken out of each document."""


class Kept(NamedTuple):
    """A document that is kept, unless it is a duplicate."""

    document: Document
    """As it is tokenized."""
    whole: str
    """Its text with the lines that earlier documents have, by which it is compared with others."""
    lines: tuple[int, int]
    """How many of those lines were taken out, and their characters."""
    little_left: bool
    """Whether too little is left of it to be kept."""
    copies: int
    """How often it is taken."""
    source: int
    """As in ``CorpusFile``, and so is ``validation``."""
    validation: bool


class RejectFile:
    """The rejects of one task, as a gzip member: members one behind the other are a gzip file too."""

    def __init__(self, folder: Path) -> None:
        self.counts: dict[str, dict[str, int]] = {}
        """Source -> reason -> rejects."""
        self._file = (folder / REJECTS_PART).open("wb")
        self._stream = gzip.GzipFile(filename="", fileobj=self._file, mode="wb", mtime=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._file.close()

    def by_source(self) -> dict[str, Any]:
        """The counts as records have them."""
        return {source: {"rejects": counts} for source, counts in self.counts.items()}

    def write(self, item: Reject, source: int) -> None:
        """Append one, and count it as of a source (see ``CorpusFile``)."""
        counts = self.counts.setdefault(str(source), {})
        counts[item.reason] = counts.get(item.reason, 0) + 1
        self._stream.write((json.dumps(item.as_dict()) + "\n").encode())


class DocumentTable:
    """The kept documents of one map task, as they are read back."""

    def __init__(self, columns: dict[str, np.ndarray]) -> None:
        self._columns = columns

    def column(self, name: str) -> np.ndarray:
        """[documents] i64, one of ``COLUMNS`` or ``LINE_COLUMNS``."""
        return self._columns[name]

    @property
    def little_left(self) -> np.ndarray:
        """[documents] bool, of which repeated lines were taken out and too little is left to be kept."""
        return self.column("length") == 0  # others without tokens are not in the table

    @property
    def repeats(self) -> np.ndarray:
        """[n, 2] u32, documents that repeat an earlier one of the same task, and that one."""
        return self._columns["repeats"]

    def ids(self, rows: np.ndarray) -> list[str]:
        """The ids of documents."""
        offsets, text = self._columns["id_offsets"], self._columns["ids"]
        return [bytes(text[offsets[row] : offsets[row + 1]]).decode() for row in rows.tolist()]


def read_documents(folder: Path) -> DocumentTable:
    """The documents of a map task's folder."""
    columns = load_file(folder / DOCUMENTS)
    if "source" not in columns:  # kept before there was this column
        columns["source"] = np.zeros_like(columns["length"])
    return DocumentTable(columns)


def document_ids(folder: Path, rows: np.ndarray) -> list[str]:
    """The ids of some documents of a map task, without reading the others."""
    with safe_open(folder / DOCUMENTS, framework="np") as file:
        offsets, text = file.get_slice("id_offsets"), file.get_slice("ids")
        places = [offsets[row : row + 2] for row in rows.tolist()]
        return [bytes(text[int(begin) : int(end)]).decode() for begin, end in places]


class _NewDocuments:
    """The kept documents of one map task, while they are found."""

    def __init__(self, texts: TextFile | None, *, lines: bool) -> None:
        self.texts = texts
        """Where their texts go, if they are wanted."""
        self.ids: list[str] = []
        self.columns: dict[str, list[int]] = {name: [] for name in (*COLUMNS, *(LINE_COLUMNS if lines else ()))}
        self.keys: list[bytes] = []
        self.signatures: list[np.ndarray] = []

    def write(self, folder: Path, plan: WorkPlan) -> None:
        config = plan.config
        repeats = np.empty((0, 2), dtype=np.uint32)
        if plan.compares_texts:
            table, repeats = key_table(np.frombuffer(b"".join(self.keys), dtype="<u8").reshape(-1, 2))
            table.tofile(folder / KEYS)
        if (threshold := config.duplicates.near_threshold) is not None:
            signatures = np.array(self.signatures, dtype=np.uint32).reshape(-1, NUM_PERMUTATIONS)
            signatures.tofile(folder / SIGNATURES)
            band_table(signatures, threshold, config.duplicates.near_characters).tofile(folder / BANDS)
        ids = [name.encode() for name in self.ids]
        columns: dict[str, np.ndarray] = {
            name: np.array(values, dtype=np.int64) for name, values in self.columns.items()
        }
        columns["repeats"] = repeats
        columns["id_offsets"] = np.cumsum([0, *map(len, ids)], dtype=np.int64)
        columns["ids"] = np.frombuffer(b"".join(ids), dtype=np.uint8)
        with safetensors_written_to(folder):
            save_file({name: np.ascontiguousarray(column) for name, column in columns.items()}, folder / DOCUMENTS)


@lru_cache(maxsize=1)
def _encoder(shards: Path, _plan_hash: str, dtype: str) -> TextEncoder:
    return TextEncoder(load_tokenizer(shards / TOKENIZER), np.dtype(dtype))


def run_map(plan: WorkPlan, index: int) -> dict[str, Any]:
    """Clean and tokenize one part of the corpus; its record."""
    task = map_task(plan, index)
    if task.kept is not None:
        return taken_over(plan, "map", index, Path(task.kept))
    sources: dict[str, dict[str, Any]] = {}
    record: dict[str, Any] = {}
    with committed(plan, "map", index, record) as folder:
        with (
            (folder / "tokens.bin").open("wb") as tokens,
            RejectFile(folder) as rejects,
            TextFile(folder / TEXT) if plan.config.write_text else contextlib.nullcontext() as texts,
        ):
            lines = EarlierLines(plan, index) if plan.config.filters.repeated_lines.across_documents else None
            table = _NewDocuments(texts, lines=lines is not None)
            kept = itertools.chain.from_iterable(
                _kept(plan, partition, found, lines, sources, rejects.write) for partition, found in task.partitions
            )
            for batch in _batches(kept):
                tokens.write(_encode_batch(plan, batch, table, sources, rejects.write).data)
        table.write(folder, plan)
        if lines is not None and plan.config.keep_documents:
            lines.put(folder)
            record["lines"] = len(lines)
        record["documents"], record["sources"] = len(table.ids), merge([sources, rejects.by_source()])
        for document_filter in filters_of(plan):
            record |= document_filter.counts()
    return record


def _kept(
    plan: WorkPlan,
    partition: Partition,
    found: SurveyedFile,
    lines: EarlierLines | None,
    sources: dict[str, dict[str, Any]],
    reject: Callable[[Reject, int], None],
) -> Iterator[Kept]:
    """What is kept of one partition; the others are counted."""
    weight, source = found.file.weight, found.file.source
    counts = sources.setdefault(str(source), {"read": 0, "not_sampled": 0})
    if not found.file.validation:  # what corpus.temperature evens out
        counts.setdefault("bytes", 0)
    filters, min_characters = filters_of(plan), plan.config.cleaning.min_characters
    for item in read_planned(plan, partition, found):
        counts["read"] += 1
        if isinstance(item, Reject):
            reject(item, source)
            continue
        if item.repaired:
            counts["repaired"] = counts.get("repaired", 0) + 1
        if item.encoding is not None:
            encodings = counts.setdefault("encodings", {})
            encodings[item.encoding] = encodings.get(item.encoding, 0) + 1
        copies = copies_of(item.id, weight)
        if not copies:
            counts["not_sampled"] += 1
            continue
        if counts["read"] % SAMPLED_DOCUMENTS == 1:
            encoder = _encoder(plan.shards, plan.hash, plan.geometry.token_dtype.str)
            stripped = stripped_marks(encoder.tokenizer, item.text)
            counts |= {name: counts.get(name, 0) + number for name, number in stripped.items()}
        judged = filtered(item, filters, min_characters) if filters else item
        count_language(counts, judged)
        if isinstance(judged, Reject):
            reject(judged, source)
            continue
        left, *out = (judged, 0, 0) if lines is None else lines.taken_out(judged)
        if not found.file.validation:
            counts["bytes"] += len(left.text.encode())
        yield Kept(
            document=left,
            whole=judged.text,
            lines=(out[0], out[1]),
            little_left=out[0] > 0 and len(left.text) < min_characters,
            copies=copies,
            source=source,
            validation=found.file.validation,
        )


def _batches(items: Iterable[Kept]) -> Iterator[list[Kept]]:
    batch: list[Kept] = []
    size = 0
    for item in items:
        batch.append(item)
        size += len(item.document.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode_batch(
    plan: WorkPlan,
    batch: list[Kept],
    table: _NewDocuments,
    sources: dict[str, dict[str, Any]],
    reject: Callable[[Reject, int], None],
) -> np.ndarray:
    """Tokens of a batch; its documents go into the table, what they are by language into ``sources``."""
    encoder = _encoder(plan.shards, plan.hash, plan.geometry.token_dtype.str)
    tokens, lengths = encoder.encode(["" if item.little_left else item.document.text for item in batch])
    unknown = np.concatenate([[0], np.cumsum(tokens == plan.special_ids["unk"])])
    ends = np.cumsum(lengths)
    first = len(table.ids)
    texts: list[str] = []
    fraction = validation_fraction(plan.config) if plan.config.validation_split == "hash" else 0.0  # later: by source
    for item, length, end in zip(batch, lengths.tolist(), ends.tolist(), strict=True):
        document, source = item.document, item.source
        if not length and not item.little_left:
            reject(Reject(id=document.key, reason="no_tokens", detail="", sample=document.text[:1000]), source)
            continue
        table.ids.append(document.key)
        table.keys.append(text_key(item.whole))
        texts.append(document.text)
        validation = item.validation or document_draw(document.id) < fraction
        words, of_unknown = len(document.text.split()), int(unknown[end] - unknown[end - length])
        row = (length, len(document.text), words, of_unknown, validation, item.copies, source)
        row += item.lines if LINE_COLUMNS[0] in table.columns else ()
        made = {"words": words, "tokens": length, "unknown_tokens": of_unknown}
        count_tokens_of_language(sources[str(source)], document.language, made)
        for column, value in zip(table.columns.values(), row, strict=True):
            column.append(value)
        if plan.config.duplicates.near_threshold is not None:
            table.signatures.append(near_signature(item.whole, plan.config.duplicates.near_characters))
    if table.texts is not None:
        table.texts.write(table.ids[first:], table.columns["validation"][first:], texts)
    return tokens
