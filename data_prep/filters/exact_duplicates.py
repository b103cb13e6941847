"""Exact duplicates: documents whose text, white space aside, an earlier document has already.

A document's global index is its place in its partition plus the documents of all partitions before. The result
follows from the documents in that order alone, whatever number of workers made the keys.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import xxhash

from data_prep.filters.word_ngrams import as_bytes

KEYS_A_PASS = 1 << 22
"""Keys that ``exact_survivors`` sorts at once, in about 400 MB."""


def text_key(text: str) -> bytes:
    """16 bytes that are equal for texts that are equal but for white space (xxh3_128)."""
    return xxhash.xxh3_128_digest(as_bytes(" ".join(text.split())))


def exact_survivors(keys: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Find the first of each group of equal keys.

    Args:
        keys: for each partition [documents, 2] u64, the halves of ``text_key``; may be memory maps.

    Returns:
        For each partition [documents] i64: -1 where the document survives, else the global index of the survivor, the
        smallest of those with the same key.

    Keys are hashes, so equal ranges of their values hold about as many keys each; one range is sorted at a time,
    which bounds the memory. Only copies of one text cannot be split.
    """
    starts = np.cumsum([0, *map(len, keys)])
    found = np.full(starts[-1], -1, dtype=np.int64)
    passes = -(-int(starts[-1]) // KEYS_A_PASS)
    limits = [number * 2**64 // passes for number in range(passes)] + [2**64]
    for low, high in itertools.pairwise(limits):
        ids, inside = [], []
        for part, start in zip(keys, starts, strict=False):
            first = part[:, 0]
            chosen = np.flatnonzero((first >= np.uint64(low)) & (first <= np.uint64(high - 1)))
            ids.append(chosen + start)
            inside.append(part[chosen])
        repeated, survivors = _repeated(np.concatenate(ids), np.concatenate(inside))
        found[repeated] = survivors
    return np.split(found, starts[1:-1]) if len(keys) else []


def _repeated(ids: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ids with an equal key before them, and the first id of that key; ids rise, keys are [documents, 2]."""
    order = np.argsort(keys[:, 0], kind="stable")
    again = keys[order[1:], 0] == keys[order[:-1], 0]
    # Few keys share even their first half: only those are sorted by both.
    shared = np.zeros(len(ids), dtype=bool)
    shared[1:] |= again
    shared[:-1] |= again
    order = order[shared]
    order = order[np.lexsort((keys[order, 1], keys[order, 0]))]  # stable, so ids rise among equal keys
    firsts = np.ones(len(order), dtype=bool)
    firsts[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    survivors = ids[order[firsts]][np.cumsum(firsts) - 1]
    return ids[order[~firsts]], survivors[~firsts]
