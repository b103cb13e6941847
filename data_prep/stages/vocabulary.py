"""Corpus -> tokenizer.json: what ``narrowbert-prep vocab`` does.

The corpus is read several times, by worker processes and in the parts that ``shards`` would cut it into. The first
reading finds how large the documents are and which of them repeat others. What is trained on follows from that.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from tokenizers import models

from data_prep.config import PrepConfig, tokenizer_path
from data_prep.contract.command_line import UserError
from data_prep.contract.files import check_writable
from data_prep.contract.tokenizer import load_tokenizer, save_tokenizer, special_ids, tokenizer_hash, vocabulary_size
from data_prep.corpus.documents import CorpusFile, Document, Partition, Reject
from data_prep.corpus.draws import (
    copies_of,
    copies_of_draws,
    find_input_files,
    sampling_rate,
    temperature_weights,
    weight_draw,
)
from data_prep.corpus.reading import read_partition
from data_prep.filters.document_filter import DocumentFilter
from data_prep.filters.exact_duplicates import equal_keys, text_key
from data_prep.filters.registry import filtered, open_filters
from data_prep.report.progress import Progress
from data_prep.report.statistics import encodings_of, merge
from data_prep.stages.work_plan import map_tasks, stamp_of, survey_files
from data_prep.stages.workers import Workers
from data_prep.tokens.losses import TokenCounter, notes_on_losses
from data_prep.tokens.vocabulary import count_characters, train_tokenizer
from data_prep.tokens.word_table import TextEncoder

Result = TypeVar("Result")

ENCODED_BYTE_LEVEL = 8
"""Of so many documents one is tokenized again with a byte-level vocabulary, which has no [UNK] to be found."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabularySummary:
    """What one run of ``build_vocabulary`` did."""

    path: str
    """The tokenizer.json."""
    entries: int
    """Entries of the vocabulary."""
    sha256: str
    """Of the file."""
    already_there: bool
    """True when the same file was there before."""
    text_bytes: int
    """Cleaned text of the corpus, each document as often as its weight says, duplicates once."""
    trained_bytes: int
    """What of it the tokenizer was trained on."""
    weights: dict[int, float]
    """Source -> how often ``corpus.temperature`` takes its documents; empty where that is not given."""
    unknown_share: float
    """Share of the tokens of that text that are [UNK]."""
    tokens: dict[str, dict[str, int]]
    """What to call a source, and a language where ``filters.language`` identifies them -> words, tokens and
    unknown_tokens of that text."""
    notes: list[str]
    """What it loses of the corpus or takes otherwise than the shards, a line each."""
    rejects: dict[str, int]
    """Reason -> documents or lines that the vocabulary was not trained on."""
    encodings: dict[str, int]
    """Encoding -> files that were read in it, where it is not UTF-8."""


def build_vocabulary(config: PrepConfig, progress: Progress) -> VocabularySummary:
    """Train a tokenizer on the corpus and write it to ``tokenizer_path(config)``.

    The file is the same for any number of processes.

    Raises:
        UserError: wrong input, too little text, or the file cannot be written.
    """
    path = tokenizer_path(config)
    check_writable("the folder of the tokenizer", Path(path).parent)
    with Workers(config.num_workers, own_threads=True, note=progress.note) as workers:
        corpus = TrainingCorpus(config, workers, progress)
        try:
            characters = None if config.vocabulary.model == "bpe" else corpus.characters()
            tokenizer = train_tokenizer(corpus.texts, config.vocabulary, characters)
        except UserError as error:
            found = ", ".join(f"{count:,} {reason}" for reason, count in sorted(corpus.rejects.items()))
            raise UserError(f"{error}{f' (rejected: {found})' if found else ''}") from error
        new = save_tokenizer(tokenizer, path)
        counts, tokens = corpus.count_tokens(path)
    unknown = counts.get("unknown_tokens", 0) / max(counts.get("tokens", 0), 1)
    return VocabularySummary(
        path=path,
        entries=tokenizer.get_vocab_size(),
        sha256=tokenizer_hash(path),
        already_there=not new,
        text_bytes=corpus.text_bytes,
        trained_bytes=corpus.trained_bytes,
        weights={} if config.corpus.temperature is None else corpus.weights,
        unknown_share=unknown,
        tokens=tokens,
        notes=[*_notes(config), *notes_on_losses(unknown, {} if config.vocabulary.strip_accents else counts)],
        rejects=dict(corpus.rejects),
        encodings=corpus.encodings,
    )


def _notes(config: PrepConfig) -> list[str]:
    if not config.filters.repeated_lines.across_documents:
        return []
    return ["filters.repeated_lines.across_documents is for shards alone: the vocabulary counts these lines each time"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Part:
    """What one worker reads at once."""

    config: PrepConfig
    partitions: tuple[tuple[Partition, CorpusFile, list[int | str] | None], ...]
    """With the ``stamp_of`` each file."""
    bytes: int
    """Of the files' text."""
    compared: bool
    """Whether equal documents are looked for."""
    copies: np.ndarray | None = None
    """[documents] i64, how often each is trained on, when that is known."""


class _Measured(NamedTuple):
    """The documents of a part, or of all parts."""

    keys: np.ndarray
    """[documents, 2] u64, the ``text_key`` of each, if they are compared."""
    draws: np.ndarray
    """[documents] f64, the ``weight_draw`` of each."""
    sizes: np.ndarray
    """[documents] i64, bytes of each."""
    sources: np.ndarray
    """[documents] i64, of each (see ``CorpusFile``)."""


class TrainingCorpus:
    """The documents that the tokenizer is trained on: those that ``shards`` makes rows of, near-duplicates included,
    or a sample of them.

    Raises:
        UserError: the corpus cannot be read or has changed since it was measured, or the sample would be empty.
    """

    weights: dict[int, float]
    """Source -> how often its documents are taken, before they are sampled."""
    rejects: Counter[str]
    """Reason -> documents or lines that are none of them."""
    text_bytes: int
    """As ``VocabularySummary`` has it, and so is ``trained_bytes``."""
    trained_bytes: int

    def __init__(self, config: PrepConfig, workers: Workers, progress: Progress) -> None:
        self._config, self._workers, self._progress = config, workers, progress
        files = find_input_files(config)
        self._validation = {file.source for file in files if file.validation}
        self.weights = {file.source: file.weight for file in files if not file.validation}
        surveyed = survey_files(files, config, workers, progress)
        self.encodings = encodings_of(found.survey for found in surveyed if not found.file.validation)
        compared = config.duplicates.exact or bool(self._validation)
        self._parts = [
            _Part(
                config=config,
                partitions=tuple((partition, found.file, found.stamp) for partition, found in task.partitions),
                bytes=task.bytes,
                compared=compared,
            )
            for task in map_tasks(surveyed)
        ]
        self.rejects = Counter()
        measured: list[_Measured] = []
        for table, rejects in self._each("measure", _measure):
            measured.append(table)
            self.rejects.update(rejects)
        self._choose(_Measured(*map(np.concatenate, zip(*measured, strict=True))), [len(t.sizes) for t in measured])

    def _choose(self, table: _Measured, lengths: list[int]) -> None:
        """Decide how often each document is trained on; ``lengths`` are the documents of each part."""
        sizes = np.bincount(table.sources, table.sizes, minlength=max(self.weights) + 1).astype(np.int64).tolist()
        if (temperature := self._config.corpus.temperature) is not None:
            self.weights = temperature_weights({source: sizes[source] for source in self.weights}, temperature)
        weights = np.array([self.weights.get(source, 0.0) for source in table.sources.tolist()], dtype=np.float64)
        weights[self._repeats(table)] = 0
        self.text_bytes = int((copies_of_draws(table.draws, weights) * table.sizes).sum())
        limit = self._config.vocabulary.sample_bytes
        rate = 1.0 if limit is None else sampling_rate(table.draws, weights, table.sizes, limit)
        copies = copies_of_draws(table.draws, rate * weights)
        self.trained_bytes = int((copies * table.sizes).sum())
        if self.text_bytes and not self.trained_bytes:
            raise UserError(
                f"vocabulary.sample_bytes {limit} is smaller than any sample of whole documents: the smallest document "
                f"has {table.sizes[weights > 0].min():,} bytes; raise it"
            )
        shares = np.split(copies, np.cumsum(lengths)[:-1])
        self._parts = [dataclasses.replace(part, copies=share) for part, share in zip(self._parts, shares, strict=True)]

    def _repeats(self, table: _Measured) -> np.ndarray:
        """The documents that ``shards`` drops since an earlier one has their text; they are counted."""
        if not len(table.keys):
            return np.empty(0, dtype=np.int64)
        repeats, firsts = equal_keys(table.keys[:, 0], table.keys[:, 1], np.arange(len(table.keys)))
        of_validation = np.isin(table.sources, list(self._validation))
        if not self._config.duplicates.exact:
            repeats, firsts = repeats[of_validation[firsts]], firsts[of_validation[firsts]]
        for reason, first_of_validation in (("in_validation", True), ("duplicate", False)):
            found = np.count_nonzero(~of_validation[repeats] & (of_validation[firsts] == first_of_validation))
            if found:
                self.rejects[reason] = int(found)
        return repeats

    def _each(self, stage: str, task: Callable[[Any], Result], *arguments: str) -> Iterator[Result]:
        """``task((part, *arguments))`` of each part that has something to train on, in their order."""
        parts = [part for part in self._parts if part.copies is None or part.copies.any()]
        self._progress.start(stage, sum(part.bytes for part in parts), "B")
        results = self._workers.run(task, [(part, *arguments) for part in parts])
        for part, result in zip(parts, results, strict=True):
            yield result
            documents = 0 if part.copies is None else int(np.count_nonzero(part.copies))
            self._progress.advance(part.bytes, documents)

    def texts(self) -> Iterator[str]:
        """The texts that are trained on, in the order of the corpus, copies side by side."""
        for texts in self._each("train", _texts):
            yield from texts

    def characters(self) -> Counter[str]:
        """``count_characters`` of the texts."""
        counts: Counter[str] = Counter()
        for found in self._each("characters", _characters):
            counts.update(found)
        return counts

    def count_tokens(self, path: str) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
        """What the tokenizer at ``path`` makes of the documents, each once: the counts of ``TokenCounter`` of all of
        them, and of each source and language, with its name; the largest language first."""
        found: dict[Any, dict[str, int]] = merge(self._each("tokens", _count_tokens, path, tokenizer_hash(path)))
        entries = {source: f"entry {number} of corpus.paths" for number, source in enumerate(self.weights, 1)}
        by_source: dict[str, dict[str, int]] = {}
        by_language: dict[str, dict[str, int]] = {}
        for (source, language), counts in sorted(found.items(), key=lambda item: (item[0][0], item[0][1] or "")):
            by_source[entries[source]] = merge([by_source.get(entries[source], {}), counts])
            if language is not None:
                by_language[language] = merge([by_language.get(language, {}), counts])
        languages = sorted(by_language.items(), key=lambda item: (-item[1]["tokens"], item[0]))
        return merge(by_source.values()), {**by_source, **{f"language {name}": counts for name, counts in languages}}


@lru_cache(maxsize=1)
def _filters(config: PrepConfig) -> list[DocumentFilter]:
    return open_filters(config)


def _documents(part: _Part, rejects: Counter[str]) -> Iterator[tuple[Document, CorpusFile]]:
    """The documents that ``shards`` would look for duplicates in, as the filters leave them; the others are counted."""
    filters = _filters(part.config)
    for partition, file, stamp in part.partitions:
        for item in read_partition(file, partition, part.config.corpus, part.config.cleaning):
            if isinstance(item, Document) and not copies_of(item.id, file.weight):
                continue
            if isinstance(item, Document) and filters:
                item = filtered(item, filters, part.config.cleaning.min_characters)
            if isinstance(item, Reject):
                if not file.validation:
                    rejects[item.reason] += 1
            else:
                yield item, file
        if stamp_of(file) != stamp:
            raise UserError(f"corpus file {file.path or file.name} changed while it was read: give the command again")


def _measure(task: tuple[_Part]) -> tuple[_Measured, Counter[str]]:
    (part,) = task
    rejects: Counter[str] = Counter()
    keys: list[bytes] = []
    columns: list[tuple[float, int, int]] = []
    for document, file in _documents(part, rejects):
        if part.compared:
            keys.append(text_key(document.text))
        columns.append((weight_draw(document.id), len(document.text.encode()), file.source))
    draws, sizes, sources = zip(*columns, strict=True) if columns else ((), (), ())
    table = _Measured(
        keys=np.frombuffer(b"".join(keys), dtype="<u8").reshape(-1, 2),
        draws=np.array(draws, dtype=np.float64),
        sizes=np.array(sizes, dtype=np.int64),
        sources=np.array(sources, dtype=np.int64),
    )
    return table, rejects


def _chosen(part: _Part) -> Iterator[tuple[Document, int, int]]:
    """The documents of a part that are trained on, their sources, and how often."""
    assert part.copies is not None
    for (document, file), copies in zip(_documents(part, Counter()), part.copies.tolist(), strict=True):
        if copies:
            yield document, file.source, copies


def _texts(task: tuple[_Part]) -> list[str]:
    return [document.text for document, _, copies in _chosen(task[0]) for _ in range(copies)]


def _characters(task: tuple[_Part]) -> Counter[str]:
    (part,) = task
    texts = (document.text for document, _, copies in _chosen(part) for _ in range(copies))
    return count_characters(texts, part.config.vocabulary)


Group = tuple[int, str | None]
"""A source, and the language of a document where it is known."""


@lru_cache(maxsize=1)
def _counter(path: str, _sha256: str) -> TokenCounter[Group]:
    tokenizer = load_tokenizer(path)
    dtype = np.dtype("<u2" if vocabulary_size(tokenizer) <= 1 << 16 else "<u4")
    return TokenCounter(TextEncoder(tokenizer, dtype), special_ids(tokenizer)["unk"])


def _count_tokens(task: tuple[_Part, str, str]) -> dict[Any, Any]:
    part, path, sha256 = task
    counter = _counter(path, sha256)
    step = ENCODED_BYTE_LEVEL if isinstance(counter.tokenizer.model, models.BPE) else 1
    seen: Counter[Group] = Counter()
    for document, source, _ in _chosen(part):
        group = (source, document.language)
        if seen[group] % step == 0:
            counter.add(group, document.text)
        seen[group] += 1
    return counter.taken()
