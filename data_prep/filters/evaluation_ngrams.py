"""N-grams of evaluation sets, kept out of the training text."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Self

import numpy as np

from data_prep.config import PrepConfig, as_tuple
from data_prep.contract.shell.encodings import AUTO
from data_prep.corpus.documents import CorpusFile
from data_prep.corpus.files import find_corpus_files
from data_prep.corpus.reading import read_texts
from data_prep.filters.analysis import AnalysedText
from data_prep.filters.document_filter import DocumentFilter, Refusal
from data_prep.filters.word_ngrams import as_text, weighted_ngram_hashes, words_of

TABLE_BITS = (16, 26)
"""Fewest and most bits of a hash that the table of first bits looks at."""


class EvaluationNgrams(DocumentFilter):
    """Drops documents that share an n-gram of words with an evaluation text. Build it with ``open`` or ``of``."""

    reason = "contaminated"
    config_keys = ("duplicates.evaluation_paths", "duplicates.evaluation_ngram")

    def __init__(self, hashes: np.ndarray, n: int, too_short: int) -> None:
        self.n = n
        """Words of an n-gram."""
        self.too_short = too_short
        """Evaluation texts of fewer than n words, which nothing is checked against."""
        self._hashes = hashes  # sorted and unique
        low, high = TABLE_BITS
        bits = min(high, max(low, (8 * len(hashes)).bit_length()))
        # A table of the hashes' first bits answers no for almost all n-grams, without the slow search.
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, dtype=bool)
        self._table[hashes >> self._shift] = True

    @classmethod
    def of(cls, texts: Iterable[str], n: int) -> Self:
        """The n-grams of lower-cased words of all texts, which ``word_ngrams`` defines."""
        too_short = 0
        hashes = [np.empty(0, dtype=np.uint64)]
        for text in texts:
            found, _ = weighted_ngram_hashes(words_of(text), n)
            too_short += not len(found)
            hashes.append(np.unique(found))
        return cls(np.unique(np.concatenate(hashes)), n, too_short)

    @classmethod
    def open(cls, config: PrepConfig) -> Self | None:
        """The n-grams of ``duplicates.evaluation_paths``; None where there are no such files."""
        files = evaluation_files(config)
        return cls.of(read_texts(files, config), config.duplicates.evaluation_ngram) if files else None

    def check(self, text: AnalysedText) -> Refusal | None:
        """The first n-gram that the document shares with an evaluation text."""
        shared = self.shared(text.text)
        return None if shared is None else Refusal(detail=f"shares '{shared}'")

    def counts(self) -> dict[str, int]:
        """How many evaluation texts are too short to be checked against."""
        return {"unchecked_evaluation_texts": self.too_short}

    @classmethod
    def note(cls, config: PrepConfig, record: Mapping[str, int], /) -> str | None:
        """Evaluation texts that nothing was checked against."""
        unchecked = record.get("unchecked_evaluation_texts")
        if not unchecked:
            return None
        words = config.duplicates.evaluation_ngram
        return f"{unchecked} evaluation texts have fewer than {words} words: nothing was checked against them"

    def shared(self, text: str) -> str | None:
        """The first n-gram of ``text`` that an evaluation text has as well, or None."""
        if not len(self._hashes):
            return None
        words = words_of(text)
        hashes, ends = weighted_ngram_hashes(words, self.n)
        near = np.flatnonzero(self._table[hashes >> self._shift])
        places = np.searchsorted(self._hashes, hashes[near])
        hits = near[self._hashes[np.minimum(places, len(self._hashes) - 1)] == hashes[near]]
        return as_text(words[hits[0] : ends[hits[0]]]) if len(hits) else None


def evaluation_files(config: PrepConfig) -> list[CorpusFile]:
    """The evaluation files whose texts the corpus must not hold."""
    paths = as_tuple(config.duplicates.evaluation_paths)
    corpus = dataclasses.replace(config.corpus, paths=paths, weights=None, encoding=AUTO)
    return find_corpus_files(corpus, output=config.output) if paths else []
