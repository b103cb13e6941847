"""Near-duplicates: documents that share most of their shingles, of words or of characters, with another one.

Documents are numbered as in ``exact_duplicates``. Two documents are compared when their signatures agree on a whole
band (locality-sensitive hashing: Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4). They are
near-duplicates when the share of equal entries, which estimates the Jaccard similarity, reaches the threshold. A
document is dropped when an earlier one that is not dropped itself is near to it.

Among the documents of one band and hash each is compared with a few leaders, which are not near to each other, and not
with all: a million pages of one template share a hash, and all their pairs would take days. It is paired with the
first leader that it is near to. Where that one is dropped itself, the pairs of the other bands decide.
"""

from collections.abc import Callable, Sequence

import numpy as np

from data_prep.arrays.ranges import ranges
from data_prep.contract.command_line import UserError
from data_prep.filters.word_ngrams import (
    MULTIPLIER,
    character_ngram_hashes,
    characters_of,
    ngram_hashes,
    words_of,
)

SHINGLE_WORDS = 5
NUM_PERMUTATIONS = 128
SIGNATURE_SEED = 1
SHINGLES_AT_ONCE = 1 << 14

BAND_KEY = np.dtype([("key", "<u8"), ("row", "<u4")])
"""A hash of a band and its entries, and the number of the document in its part of the corpus."""

LEADERS = 32
"""Documents of one band and hash that the others of it are compared with."""

DOCUMENTS_AT_ONCE = 1 << 16
"""Documents whose signatures are compared at once, in 32 MB."""

KEPT_SIGNATURES = 1 << 18
"""Signatures that are kept once they are read, in 128 MB."""

LSH_RECALL, CHARACTERS_LSH_RECALL = 0.99, 0.85
"""Least chance that a pair whose similarity is exactly the threshold becomes a candidate. Shingles of characters are
compared at low thresholds, at which the bands that find 99% are so short that unlike documents share many of them."""


def near_signature(text: str, characters: int | None = None) -> np.ndarray:
    """[128] u32, the MinHash of the text's shingles of 5 lower-cased words (Broder 1997).

    A text of fewer words is one shingle, and so is one without any word. An ideograph is a word here, and so is a
    letter of South East Asia with its marks.

    Args:
        text: of a document.
        characters: of which a shingle has so many, rather than words; signs and blanks between words are one of them.

    Raises:
        UserError: the library datasketch is not installed.
    """
    try:
        from datasketch import MinHash  # brings scipy along
    except ImportError as error:
        raise UserError(
            "duplicates.near_threshold needs the library datasketch: pip install 'narrowbert[dedup]'"
        ) from error
    hashes = np.unique(_shingle_hashes(text, characters) >> np.uint64(32))
    minhash = MinHash(num_perm=NUM_PERMUTATIONS, seed=SIGNATURE_SEED, scheme="affine32", hashfunc=int)
    for start in range(0, len(hashes), SHINGLES_AT_ONCE):
        minhash.update_batch(hashes[start : start + SHINGLES_AT_ONCE].tolist())
    return np.asarray(minhash.hashvalues, dtype=np.uint32)


def _shingle_hashes(text: str, characters: int | None) -> np.ndarray:
    if characters:
        codes = characters_of(text)
        if len(codes):
            return character_ngram_hashes(codes, min(characters, len(codes)))
    words = words_of(text) or [" ".join(text.split())]
    return ngram_hashes(words, min(SHINGLE_WORDS, len(words)))


def band_table(signatures: np.ndarray, threshold: float, characters: int | None = None) -> np.ndarray:
    """[documents x bands] ``BAND_KEY``, rising: documents that share a key are worth comparing.

    Args:
        signatures: [documents, 128] u32, of ``near_signature``.
        threshold: 0 to 1; the lower it is, the shorter and the more are the bands.
        characters: as they were made.
    """
    bands = _bands(threshold, characters)
    table = np.empty((len(bands), len(signatures)), dtype=BAND_KEY)
    for number, columns in enumerate(bands):
        table["key"][number] = _band_hashes(signatures[:, columns], number)
    table["row"] = np.arange(len(signatures))
    flat = table.reshape(-1)
    return flat[np.lexsort((flat["row"], flat["key"]))]


class KeptSignatures:
    """Signatures of documents, each read once while there is room.

    A document is looked up once for each of its bands. Without this, a corpus of many small parts would open each of
    them again and again.
    """

    def __init__(self, read: Callable[[np.ndarray], np.ndarray], most: int = KEPT_SIGNATURES) -> None:
        """Keep what ``read`` gives: the [m, 128] u32 signatures of [m] rising documents, ``most`` at most."""
        self._read, self._most = read, most
        self._documents = np.empty(0, dtype=np.int64)  # rising
        self._slots = np.empty(0, dtype=np.int64)  # of each in _signatures, which only grows: no copies
        self._signatures = np.empty((most, NUM_PERMUTATIONS), dtype=np.uint32)

    def of(self, documents: np.ndarray) -> np.ndarray:
        """[n, 128] u32 of [n] rising documents."""
        found = np.empty((len(documents), NUM_PERMUTATIONS), dtype=np.uint32)
        places = np.searchsorted(self._documents, documents)
        known = places < len(self._documents)
        known[known] = self._documents[places[known]] == documents[known]
        found[known] = self._signatures[self._slots[places[known]]]
        missing = documents[~known]
        if len(missing):
            found[~known] = new = self._read(missing)
            used = len(self._documents)
            if used + len(missing) <= self._most:
                slots = np.arange(used, used + len(missing))
                self._signatures[slots] = new
                self._documents = np.insert(self._documents, places[~known], missing)
                self._slots = np.insert(self._slots, places[~known], slots)
        return found


def near_pairs(
    keys: np.ndarray, documents: np.ndarray, signatures_of: Callable[[np.ndarray], np.ndarray], threshold: float
) -> np.ndarray:
    """Pairs of near-duplicates among the documents that share a key.

    Time grows with the number of documents and not with that of their pairs; see ``LEADERS``.

    Args:
        keys: [n] u64, rising, from band tables.
        documents: [n] i64, rising among equal keys.
        signatures_of: gives the [m, 128] u32 signatures of [m] rising documents.
        threshold: 0 to 1.

    Returns:
        [pairs, 2] i64: the earlier document, the later one.
    """
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])) if len(keys) else np.empty(0, dtype=np.int64)
    sizes = np.diff(np.append(starts, len(keys)))
    starts, sizes = starts[sizes > 1], sizes[sizes > 1]
    needed = threshold * NUM_PERMUTATIONS
    found: list[np.ndarray] = []
    first = 0
    while first < len(starts):
        last = first + max(1, int(np.searchsorted(np.cumsum(sizes[first:]), DOCUMENTS_AT_ONCE, side="right")))
        if sizes[first] > DOCUMENTS_AT_ONCE:
            last = first + 1
            found.append(_led(documents[starts[first] : starts[first] + sizes[first]], signatures_of, needed))
        else:
            found.append(_pairs_of_groups(documents, starts[first:last], sizes[first:last], signatures_of, needed))
        first = last
    return distinct_pairs(found)


def distinct_pairs(found: Sequence[np.ndarray]) -> np.ndarray:
    """[pairs, 2] i64, each pair of the [n, 2] i64 arrays once: by its later document, then by its earlier one.

    Sorts by columns: ``np.unique(axis=0)`` compares rows byte by byte, which took most of the time of a large corpus.
    """
    pairs = np.concatenate([np.empty((0, 2), dtype=np.int64), *found])
    pairs = pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]
    new = np.ones(len(pairs), dtype=bool)
    new[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    return pairs[new]


def _pairs_of_groups(
    documents: np.ndarray,
    starts: np.ndarray,
    sizes: np.ndarray,
    signatures_of: Callable[[np.ndarray], np.ndarray],
    needed: float,
) -> np.ndarray:
    """Pairs within several small groups of documents."""
    members = documents[ranges(starts, sizes)]
    wanted, places = np.unique(members, return_inverse=True)
    signatures = signatures_of(wanted)
    offsets = np.cumsum(sizes) - sizes
    first = np.repeat(places[offsets], sizes)
    near = _agreeing(signatures, places, signatures, first) >= needed
    near[offsets] = False  # the first itself
    pairs = [np.stack([wanted[first[near]], wanted[places[near]]], axis=1)]
    # Most groups are pairs, and done. In the others those that are unlike the first one may be near to each other.
    unlike = ~near
    unlike[offsets] = False
    for group in np.flatnonzero(np.add.reduceat(unlike, offsets) * (sizes > 2)).tolist():
        rest = places[offsets[group] + 1 : offsets[group] + sizes[group]]
        mine = near[offsets[group] + 1 : offsets[group] + sizes[group]]
        pairs.append(_led(wanted[rest], lambda _, rest=rest: signatures[rest], needed, LEADERS - 1, led=mine))
    return np.concatenate(pairs)


def _led(
    documents: np.ndarray,
    signatures_of: Callable[[np.ndarray], np.ndarray],
    needed: float,
    most: int = LEADERS,
    led: np.ndarray | None = None,
) -> np.ndarray:
    """Pairs of one group: each document with the first leader that it is near to; one that has none becomes a leader.

    Args:
        documents: [n] i64, rising.
        signatures_of: of a stretch of them.
        needed: equal entries of near-duplicates.
        most: leaders.
        led: [n] bool, documents that have a leader already, where all are looked at at once.
    """
    leaders: list[tuple[int, np.ndarray]] = []
    pairs = [np.empty((0, 2), dtype=np.int64)]
    for start in range(0, len(documents), DOCUMENTS_AT_ONCE):
        chunk = documents[start : start + DOCUMENTS_AT_ONCE]
        signatures = signatures_of(chunk)
        without = np.arange(len(chunk)) if led is None else np.flatnonzero(~led)
        number = 0
        while len(without) and number < max(len(leaders), most):
            if number == len(leaders):
                leaders.append((int(chunk[without[0]]), signatures[without[0]]))
                without = without[1:]
            leader, signature = leaders[number]
            near = _agreeing(signatures, without, signature[None], np.zeros_like(without)) >= needed
            pairs.append(np.stack([np.full(near.sum(), leader), chunk[without[near]]], axis=1))
            without = without[~near]
            number += 1
    return np.concatenate(pairs)


def _agreeing(left: np.ndarray, one: np.ndarray, right: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[n] how many entries left[one] and right[other] have in common; few at a time, which stay in the cache."""
    counts = [np.empty(0, dtype=np.int64)]
    for start in range(0, len(one), 1 << 12):
        some = slice(start, start + (1 << 12))
        counts.append(np.count_nonzero(left[one[some]] == right[other[some]], axis=1))
    return np.concatenate(counts)


def near_survivors(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The documents that are dropped, rising, and for each the first document that is kept and near to it.

    Args:
        pairs: [pairs, 2] i64, an earlier document and a later one that is near to it, in any order; those of
            ``distinct_pairs`` need no sorting.
    """
    order = np.lexsort((pairs[:, 0], pairs[:, 1]))
    dropped: dict[int, int] = {}
    for start in range(0, len(order), 1 << 20):
        some = pairs[order[start : start + (1 << 20)]]
        for first, document in zip(some[:, 0].tolist(), some[:, 1].tolist(), strict=True):
            if first not in dropped and document not in dropped:
                dropped[document] = first
    documents = np.fromiter(dropped, dtype=np.int64, count=len(dropped))
    return documents, np.fromiter(dropped.values(), dtype=np.int64, count=len(dropped))


def band_count(threshold: float | None, characters: int | None = None) -> int:
    """Bands of a signature; none where near-duplicates are kept."""
    return 0 if threshold is None else len(_bands(threshold, characters))


def _bands(threshold: float, characters: int | None = None) -> list[slice]:
    """The columns of each band: the longest bands that still reach the recall at the threshold."""
    recall = CHARACTERS_LSH_RECALL if characters else LSH_RECALL
    fitting = (
        rows
        for rows in range(NUM_PERMUTATIONS, 1, -1)
        if 1 - (1 - threshold**rows) ** (NUM_PERMUTATIONS // rows) >= recall
    )
    rows = next(fitting, 1)
    return [slice(start, start + rows) for start in range(0, NUM_PERMUTATIONS - rows + 1, rows)]


def _band_hashes(columns: np.ndarray, band: int) -> np.ndarray:
    """[documents] u64 from [documents, rows of a band]; two bands share none but by chance."""
    combined = np.full(len(columns), band + 1, dtype=np.uint64)
    for column in columns.T:
        combined = (combined + column.astype(np.uint64)) * MULTIPLIER
        combined ^= combined >> np.uint64(32)
    return combined
