"""Near-duplicates: documents that share most of their five-word shingles with an earlier one.

Global indices are those of ``exact_duplicates``. The result follows from the documents in their order alone.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from data_prep.contract.command_line import UserError
from data_prep.filters.word_ngrams import MULTIPLIER, ngram_hashes, words_of

SHINGLE_WORDS = 5
NUM_PERMUTATIONS = 128
SIGNATURE_SEED = 1
SHINGLES_AT_ONCE = 1 << 14

LSH_RECALL = 0.99
"""Least chance that a pair whose similarity is exactly the threshold becomes a candidate."""


def near_signature(text: str) -> np.ndarray:
    """[128] u32, the MinHash of the text's shingles of 5 lower-cased words (Broder 1997).

    A text of fewer words is one shingle, and so is one without any word.

    Raises:
        UserError: the library datasketch is not installed.
    """
    try:
        from datasketch import MinHash  # brings scipy along
    except ImportError as error:
        raise UserError(
            "duplicates.near_threshold needs the library datasketch: pip install 'narrowbert[dedup]'"
        ) from error
    words = words_of(text) or [" ".join(text.split())]
    hashes = np.unique(ngram_hashes(words, min(SHINGLE_WORDS, len(words))) >> np.uint64(32))
    minhash = MinHash(num_perm=NUM_PERMUTATIONS, seed=SIGNATURE_SEED, scheme="affine32", hashfunc=int)
    for start in range(0, len(hashes), SHINGLES_AT_ONCE):
        minhash.update_batch(hashes[start : start + SHINGLES_AT_ONCE].tolist())
    return np.asarray(minhash.hashvalues, dtype=np.uint32)


def near_survivors(signatures: Sequence[np.ndarray], alive: Sequence[np.ndarray], threshold: float) -> list[np.ndarray]:
    """Drop documents, in their order, that are near-duplicates of an earlier document that was not dropped.

    Two documents are compared when their signatures agree on a whole band (locality-sensitive hashing: Leskovec,
    Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4); they are near-duplicates when the share of equal
    entries, which estimates the Jaccard similarity, reaches the threshold.

    Args:
        signatures: for each partition [documents, 128], of ``near_signature``; may be memory maps.
        alive: for each partition [documents] bool; the others are not looked at.
        threshold: 0 to 1.

    Returns:
        For each partition [documents] i64: -1 where the document survives or was not alive, else the global index of
        the survivor, the smallest of those that it is near to.
    """
    starts = np.cumsum([0, *map(len, alive)])
    found = np.full(starts[-1], -1, dtype=np.int64)
    survivors: dict[tuple[int, int], list[int]] = defaultdict(list)  # (band, its hash) -> global indices, rising

    def signature(index: int) -> np.ndarray:
        group = int(np.searchsorted(starts, index, side="right")) - 1
        return signatures[group][index - starts[group]]

    for index, bands in _shared_bands(signatures, alive, threshold):
        candidates = sorted({candidate for band in bands for candidate in survivors[band]})
        own = signature(index)
        near = (c for c in candidates if np.count_nonzero(signature(c) == own) >= threshold * NUM_PERMUTATIONS)
        found[index] = next(near, -1)
        if found[index] < 0:
            for band in bands:
                survivors[band].append(index)
    return np.split(found, starts[1:-1]) if len(alive) else []


def _shared_bands(
    signatures: Sequence[np.ndarray], alive: Sequence[np.ndarray], threshold: float
) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """(global index, its (band, hash)s that another document has too), index rising, of alive documents.

    Almost no document of a clean corpus shares a band with any other, so the tables of near_survivors stay small.
    """
    ids = np.flatnonzero(np.concatenate([np.empty(0, dtype=bool), *alive]))
    entries: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for band, columns in enumerate(_bands(threshold)):
        hashes = np.concatenate(
            [_band_hashes(part[:, columns][live]) for part, live in zip(signatures, alive, strict=True) if live.any()]
            or [np.empty(0, dtype=np.uint64)]
        )
        _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        shared = np.flatnonzero(counts[inverse] > 1)
        entries.append((ids[shared], np.full(len(shared), band), hashes[shared]))
    owners, bands, hashes = (np.concatenate(column) for column in zip(*entries, strict=True))
    order = np.argsort(owners, kind="stable")
    rows = zip(owners[order].tolist(), bands[order].tolist(), hashes[order].tolist(), strict=True)
    for index, group in itertools.groupby(rows, key=lambda row: row[0]):
        yield index, [(band, value) for _, band, value in group]


def _bands(threshold: float) -> list[slice]:
    """The columns of each band: the longest bands that still reach LSH_RECALL at the threshold."""
    fitting = (
        rows
        for rows in range(NUM_PERMUTATIONS, 1, -1)
        if 1 - (1 - threshold**rows) ** (NUM_PERMUTATIONS // rows) >= LSH_RECALL
    )
    rows = next(fitting, 1)
    return [slice(start, start + rows) for start in range(0, NUM_PERMUTATIONS - rows + 1, rows)]


def _band_hashes(columns: np.ndarray) -> np.ndarray:
    """[documents] u64 from [documents, rows of a band]."""
    combined = np.zeros(len(columns), dtype=np.uint64)
    for column in columns.T:
        combined = (combined + column.astype(np.uint64)) * MULTIPLIER
        combined ^= combined >> np.uint64(32)
    return combined
