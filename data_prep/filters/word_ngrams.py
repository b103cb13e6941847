"""Hashes of the runs of words of a text."""

import re
from collections.abc import Sequence

import numpy as np
import xxhash

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""Odd, with well mixed bits: 2**64 divided by the golden ratio."""

_CACHED_WORDS = 1 << 19
_CACHED_WORD_LENGTH = 64
_WORD = re.compile(r"\w+")


class _WordHashes(dict[str, int]):
    """Word -> 64 bit hash, remembered for the words of everyday length."""

    def __missing__(self, word: str) -> int:
        value = xxhash.xxh3_64_intdigest(as_bytes(word))
        if len(word) <= _CACHED_WORD_LENGTH:
            if len(self) >= _CACHED_WORDS:
                self.clear()
            self[word] = value
        return value


_word_hashes = _WordHashes()


def as_bytes(text: str) -> bytes:
    """UTF-8, in which halves of surrogate pairs have a place too."""
    return text.encode("utf-8", "surrogatepass")


def words_of(text: str) -> list[str]:
    """The lower-cased words of a text."""
    return _WORD.findall(text.lower())


def ngram_hashes(words: Sequence[str], n: int) -> np.ndarray:
    """[max(0, words - n + 1)] u64, a hash of every run of n words."""
    count = len(words) - n + 1
    if count < 1:
        return np.empty(0, dtype=np.uint64)
    hashes = np.fromiter(map(_word_hashes.__getitem__, words), dtype=np.uint64, count=len(words))
    combined = hashes[:count].copy()
    for offset in range(1, n):
        combined *= MULTIPLIER  # a polynomial modulo 2**64, by Horner's rule
        combined += hashes[offset : offset + count]
    return combined
