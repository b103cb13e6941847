"""N-grams of evaluation sets, kept out of the training text."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from data_prep.config import PrepConfig, as_tuple
from data_prep.corpus.documents import CorpusFile
from data_prep.corpus.files import find_corpus_files
from data_prep.filters.duplicates import (
    TABLE_BITS,
    ngram_hashes,
    words_of,
)


class EvaluationNgrams:
    """The n-grams of evaluation texts, against which documents are checked. Build it with ``of``."""

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
    def of(cls, texts: Iterable[str], n: int) -> "EvaluationNgrams":
        """The n-grams of lower-cased words (``\\w+``) of all texts."""
        too_short = 0
        hashes = [np.empty(0, dtype=np.uint64)]
        for text in texts:
            found = ngram_hashes(words_of(text), n)
            too_short += not len(found)
            hashes.append(np.unique(found))
        return cls(np.unique(np.concatenate(hashes)), n, too_short)

    def shared(self, text: str) -> str | None:
        """The first n-gram of ``text`` that an evaluation text has as well, or None."""
        if not len(self._hashes):
            return None
        words = words_of(text)
        hashes = ngram_hashes(words, self.n)
        near = np.flatnonzero(self._table[hashes >> self._shift])
        places = np.searchsorted(self._hashes, hashes[near])
        hits = near[self._hashes[np.minimum(places, len(self._hashes) - 1)] == hashes[near]]
        return " ".join(words[hits[0] : hits[0] + self.n]) if len(hits) else None


def evaluation_files(config: PrepConfig) -> list[CorpusFile]:
    """The evaluation files whose texts the corpus must not hold."""
    paths = as_tuple(config.duplicates.evaluation_paths)
    return find_corpus_files(dataclasses.replace(config.corpus, paths=paths, weights=None)) if paths else []
