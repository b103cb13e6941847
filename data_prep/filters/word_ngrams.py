"""Hashes of the runs of words, or of characters, of a text.

A word is a run of letters, digits, marks and joiners. Where a script writes no blanks, each ideograph or kana is a word
of its own, and so is each letter of South East Asia with its marks. That needs no dictionary, so it is the same on
every machine.
"""

import re
import sys
from collections.abc import Sequence
from functools import cache

import numpy as np
import xxhash

from data_prep.contract.text.scripts import (
    COMPLEX_CONTEXT,
    IDEOGRAPHS,
    JOINERS,
    MARK_PLANES,
    is_complex_context,
    is_ideograph,
    is_mark,
)

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""Odd, with well mixed bits: 2**64 divided by the golden ratio."""

_CACHED_WORDS = 1 << 19
_CACHED_WORD_LENGTH = 64
_ASCII_WORD = re.compile(r"\w+")

SIXTHS = 6
"""Of a word, the unit in which words are weighed."""

IDEOGRAPH_SIXTHS, CLUSTER_SIXTHS = 3, 2
"""Weight of an ideograph or kana, and of a letter of South East Asia with its marks."""


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


OUTSIDE, JOINED, IDEOGRAPH, CLUSTER, MARK = range(5)
"""What a character is to words: none of theirs, one of many, one by itself, one by itself with marks, or a mark."""


@cache
def _kinds() -> np.ndarray:
    """[code points] u8, what each character is to words."""
    kinds = np.zeros(sys.maxunicode + 1, dtype=np.uint8)
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    for run in re.finditer(r"\w+", everything):
        kinds[run.start() : run.end()] = JOINED
    for ranges, kind in ((IDEOGRAPHS, IDEOGRAPH), (COMPLEX_CONTEXT, CLUSTER)):
        for first, last in ranges:
            kinds[first : last + 1][kinds[first : last + 1] == JOINED] = kind
    marks = [code for code in MARK_PLANES if is_mark(chr(code))]
    kinds[marks] = MARK
    kinds[[ord(joiner) for joiner in JOINERS]] = MARK
    return kinds


def words_of(text: str) -> list[str]:
    """The lower-cased words of a text, without joiners."""
    lower = text.lower()
    if lower.isascii():
        return _ASCII_WORD.findall(lower)
    kinds = _kinds()[_code_points(lower)]
    attached = kinds == MARK
    if attached.any():  # a mark is what the character before it is; without one it is a letter
        place = np.maximum.accumulate(np.where(attached, 0, np.arange(len(kinds))))
        kinds = kinds[place]
        kinds[attached & ((kinds == OUTSIDE) | (kinds == MARK))] = JOINED
    inside = kinds != OUTSIDE
    begins = inside & ~attached
    begins[1:] &= (kinds[1:] != JOINED) | (kinds[:-1] != JOINED)
    begins |= attached & (kinds == JOINED) & np.append(True, kinds[:-1] != JOINED)
    ends = inside & np.append(begins[1:] | ~inside[1:], True)
    places = zip(np.flatnonzero(begins).tolist(), (np.flatnonzero(ends) + 1).tolist(), strict=True)
    words = [lower[begin:end] for begin, end in places]
    if any(joiner in lower for joiner in JOINERS):
        words = [word for word in (word.translate(_NO_JOINERS) for word in words) if word]
    return words


_NO_JOINERS = str.maketrans("", "", JOINERS)


def has_marks_or_no_blanks(text: str) -> bool:
    """Whether a text has a mark, or a letter of a script that writes no blanks between words."""
    return not text.isascii() and bool((_kinds()[_code_points(text)] >= IDEOGRAPH).any())


def characters_of(text: str) -> np.ndarray:
    """[n] u32, the lower-cased characters of a text's words in their order, a blank where anything stands between."""
    codes = _code_points(text.lower())
    codes = codes[~np.isin(codes, [ord(joiner) for joiner in JOINERS])]
    outside = _kinds()[codes] == OUTSIDE
    kept = ~outside
    kept[1:] |= kept[:-1]  # the first of several, where it follows a word
    found = np.where(outside, np.uint32(ord(" ")), codes)[kept]
    return found[:-1] if len(found) and found[-1] == ord(" ") else found


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def as_text(words: Sequence[str]) -> str:
    """Words as they are read: with blanks, but for scripts that write none."""
    parts: list[str] = []
    for word in words:
        unspaced = _sixths[word[0]] < SIXTHS
        if parts and not (unspaced and _sixths[parts[-1][0]] < SIXTHS):
            parts.append(" ")
        parts.append(word)
    return "".join(parts)


def ngram_hashes(words: Sequence[str], n: int) -> np.ndarray:
    """[max(0, words - n + 1)] u64, a hash of every run of n words."""
    return _hashes_of_runs(_hashes_of(words), n)


def character_ngram_hashes(codes: np.ndarray, n: int) -> np.ndarray:
    """[max(0, characters - n + 1)] u64, a hash of every run of n characters, of their [characters] code points."""
    hashes = (codes.astype(np.uint64) + np.uint64(1)) * MULTIPLIER  # mixed, since the runs' first bits are looked at
    hashes ^= hashes >> np.uint64(32)
    return _hashes_of_runs(hashes * MULTIPLIER, n)


def _hashes_of_runs(hashes: np.ndarray, n: int) -> np.ndarray:
    count = len(hashes) - n + 1
    if count < 1:
        return np.empty(0, dtype=np.uint64)
    combined = hashes[:count].copy()
    for offset in range(1, n):
        combined *= MULTIPLIER  # a polynomial modulo 2**64, by Horner's rule
        combined += hashes[offset : offset + count]
    return combined


def weighted_ngram_hashes(words: Sequence[str], n: int) -> tuple[np.ndarray, np.ndarray]:
    """A hash of the shortest run from each word on that weighs as much as n words.

    Two ideographs or kana weigh as much as a word, and three letters of South East Asia, so that a run of any language
    says about as much. Where there are none of them, these are the hashes of ``ngram_hashes``.

    Returns:
        [runs] u64 hashes, and [runs] i64 the number of the word behind each run. Run i begins at word i.
    """
    sixths = np.fromiter((_sixths[word[0]] for word in words), dtype=np.int64, count=len(words))
    before = np.concatenate([[0], np.cumsum(sixths)])
    ends = np.searchsorted(before, before[:-1] + SIXTHS * n)
    ends = ends[ends <= len(words)]
    if not len(ends):
        return np.empty(0, dtype=np.uint64), ends
    # The run's polynomial is a difference of two sums that begin at the text's first word, brought to the same power.
    powers = _powers(MULTIPLIER, len(words))
    sums = np.cumsum(_hashes_of(words) * _powers(_INVERSE, len(words)))
    sums = np.concatenate([np.zeros(1, dtype=np.uint64), sums])
    return (sums[ends] - sums[: len(ends)]) * powers[ends - 1], ends


_INVERSE = np.uint64(pow(int(MULTIPLIER), -1, 1 << 64))


def _powers(base: np.uint64, count: int) -> np.ndarray:
    """[count] u64, the powers 0, 1, 2, ... modulo 2**64."""
    factors = np.full(count, base, dtype=np.uint64)
    factors[:1] = 1
    return np.cumprod(factors)


def _hashes_of(words: Sequence[str]) -> np.ndarray:
    return np.fromiter(map(_word_hashes.__getitem__, words), dtype=np.uint64, count=len(words))


class _Sixths(dict[str, int]):
    """First character of a word -> its weight."""

    def __missing__(self, character: str) -> int:
        ideograph, cluster = is_ideograph(character), is_complex_context(character)
        weight = self[character] = IDEOGRAPH_SIXTHS if ideograph else CLUSTER_SIXTHS if cluster else SIXTHS
        return weight


_sixths = _Sixths()
