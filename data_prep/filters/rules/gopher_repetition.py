"""The repetition rules of MassiveText, the corpus of Gopher."""

import re
from collections.abc import Iterable
from typing import Self

import numpy as np

from data_prep.config import PrepConfig
from data_prep.filter_config import LONG_NGRAMS, SHORT_NGRAMS, GopherRepetitionConfig
from data_prep.filters.analysis import AnalysedText
from data_prep.filters.document_filter import DocumentFilter, Refusal, above
from data_prep.filters.word_ngrams import MULTIPLIER

_KEY = "filters.gopher_repetition"
_PARAGRAPHS = re.compile(r"\n{2,}")
_LINES = re.compile(r"\n+")


class GopherRepetition(DocumentFilter):
    """Rae et al. 2021 (arXiv 2112.11446), appendix A.1.1, "Repetition Removal" and table A1; read as datatrove does.

    All shares are of the characters of the text. Of the n-grams that occur most often the first is measured, with
    blanks between its words. What longer n-grams repeat is counted from the left, no character twice. Two n-grams are
    equal where their words are.
    """

    reason = "gopher_repetition"
    config_keys = (_KEY,)

    def __init__(self, config: GopherRepetitionConfig) -> None:
        self.config = config

    @classmethod
    def open(cls, config: PrepConfig) -> Self | None:
        """The rules, where they are on."""
        return cls(config.filters.gopher_repetition) if config.filters.gopher_repetition.enabled else None

    def check(self, text: AnalysedText) -> Refusal | None:
        """The first rule that the text breaks."""
        return self._pieces(text) or self._top_ngrams(text) or self._repeated_ngrams(text)

    def _pieces(self, text: AnalysedText) -> Refusal | None:
        config, size = self.config, max(len(text.text), 1)
        for name, pieces, most, most_characters in (
            ("paragraphs", _PARAGRAPHS.split(text.text.strip()), config.paragraphs, config.paragraph_characters),
            ("lines", _LINES.split(text.text), config.lines, config.line_characters),
        ):
            count, characters = repeated(pieces)
            refused = above(name, count / len(pieces), f"{_KEY}.{name}", most) or above(
                f"{name[:-1]}_characters", characters / size, f"{_KEY}.{name[:-1]}_characters", most_characters
            )
            if refused:
                return refused
        return None

    def _top_ngrams(self, text: AnalysedText) -> Refusal | None:
        """Its two bounds spare most texts all but one sort: a longer n-gram is no more frequent than the pairs."""
        size = max(len(text.text), 1)
        most = 0
        for n, limit in zip(SHORT_NGRAMS, self.config.top_ngrams or (), strict=False):
            if len(text.words) < n:
                break
            lengths = _window_sums(text.lengths, n) + n - 1
            longest = int(lengths.max())
            if most and most * longest <= limit * size:
                continue
            values, firsts, counts = np.unique(_ngrams(text, n), return_index=True, return_counts=True)
            del values
            most = int(counts.max())
            if most * longest <= limit * size:
                continue
            first = firsts[counts == most].min()
            refused = above(f"top_{n}grams", int(lengths[first]) * most / size, f"{_KEY}.top_ngrams", limit)
            if refused:
                return refused
        return None

    def _repeated_ngrams(self, text: AnalysedText) -> Refusal | None:
        """The characters that any repeated n-gram covers bound those that are counted, and those of longer ones."""
        size, limits = max(len(text.text), 1), self.config.repeated_ngrams or ()
        least = min(limits, default=0.0)
        for n, limit in zip(LONG_NGRAMS, limits, strict=False):
            hashes = _ngrams(text, n)
            if not len(hashes):
                break
            _, places, counts = np.unique(hashes, return_inverse=True, return_counts=True)
            again = counts[places] > 1
            covered = np.zeros(len(text.words) + 1, dtype=np.int64)
            covered[: len(again)] += again
            covered[n : n + len(again)] -= again
            bound = int(text.lengths[np.cumsum(covered)[:-1] > 0].sum())
            if bound <= least * size:
                return None
            if bound <= limit * size:
                continue
            characters = _repeated_from_the_left(places, _window_sums(text.lengths, n), n)
            refused = above(f"repeated_{n}grams", characters / size, f"{_KEY}.repeated_ngrams", limit)
            if refused:
                return refused
        return None


def repeated(pieces: Iterable[str]) -> tuple[int, int]:
    """How many pieces repeat an earlier one, and their characters."""
    seen: set[str] = set()
    count = characters = 0
    for piece in pieces:
        if piece in seen:
            count += 1
            characters += len(piece)
        else:
            seen.add(piece)
    return count, characters


def _ngrams(text: AnalysedText, n: int) -> np.ndarray:
    """[max(0, words - n + 1)] u64, a hash of each n-gram."""
    hashes = text.hashes
    count = len(hashes) - n + 1
    if count < 1:
        return np.empty(0, dtype=np.uint64)
    combined = hashes[:count].copy()
    for offset in range(1, n):
        combined *= MULTIPLIER
        combined += hashes[offset : offset + count]
    return combined


def _window_sums(values: np.ndarray, n: int) -> np.ndarray:
    """[values - n + 1] i64, the sum of each n in a row."""
    sums = np.concatenate([[0], np.cumsum(values)])
    return sums[n:] - sums[:-n]


def _repeated_from_the_left(places: np.ndarray, lengths: np.ndarray, n: int) -> int:
    """Characters of the n-grams that were met before; behind one of them the search goes on after its last word."""
    seen: set[int] = set()
    characters = index = 0
    numbers, sizes = places.tolist(), lengths.tolist()
    while index < len(numbers):
        if numbers[index] in seen:
            characters += sizes[index]
            index += n
        else:
            seen.add(numbers[index])
            index += 1
    return characters
