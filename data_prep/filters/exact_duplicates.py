"""Exact duplicates: documents whose text, white space aside, an earlier document has already.

Documents are numbered through the whole corpus, in its order. Which of equal documents survives, the first, follows
from these numbers alone, however the keys were made and shared out.
"""

import numpy as np
import xxhash

from data_prep.filters.word_ngrams import as_bytes

KEY = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<u4")])
"""The halves of a ``text_key``, and the number of the document in its part of the corpus."""


def text_key(text: str) -> bytes:
    """16 bytes that are equal for texts that are equal but for white space (xxh3_128)."""
    return xxhash.xxh3_128_digest(as_bytes(" ".join(text.split())))


def key_table(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The keys of one part of the corpus, each once, and its documents that repeat an earlier one of it.

    Args:
        keys: [documents, 2] u64, of ``text_key``.

    Returns:
        [n] ``KEY``, rising, of the first document with each key; [m, 2] u32, the row of each other document, rising,
        and the row of the first with its key.
    """
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable, so rows rise among equal keys
    table = np.empty(len(order), dtype=KEY)
    table["high"], table["low"], table["row"] = keys[order, 0], keys[order, 1], order
    firsts = _firsts(table["high"], table["low"])
    originals = table["row"][firsts][np.cumsum(firsts) - 1]
    repeats = np.stack([table["row"][~firsts], originals[~firsts]], axis=1)
    return table[firsts], repeats[np.argsort(repeats[:, 0])]


def equal_keys(high: np.ndarray, low: np.ndarray, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The documents whose key an earlier document has, and that document.

    Args:
        high, low: [n] u64, the halves of the keys, in any order.
        documents: [n] i64, whose key each is.

    Returns:
        [d] i64 documents, and for each the first document with the same key.
    """
    order = np.argsort(high, kind="stable")
    again = high[order[1:]] == high[order[:-1]]
    # Few keys share even their first half: only those are sorted by all.
    shared = np.zeros(len(order), dtype=bool)
    shared[1:] |= again
    shared[:-1] |= again
    order = order[shared]
    order = order[np.lexsort((documents[order], low[order], high[order]))]
    firsts = _firsts(high[order], low[order])
    survivors = documents[order[firsts]][np.cumsum(firsts) - 1]
    return documents[order[~firsts]], survivors[~firsts]


def _firsts(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """[n] bool, whether a key of a sorted table differs from the one before it."""
    firsts = np.ones(len(high), dtype=bool)
    firsts[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    return firsts
