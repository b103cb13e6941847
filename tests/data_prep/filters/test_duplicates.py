import itertools
import os
import random
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.contract.command_line import UserError
from data_prep.filters import exact_duplicates, near_duplicates, word_ngrams
from data_prep.filters.evaluation_ngrams import EvaluationNgrams
from data_prep.filters.exact_duplicates import exact_survivors, text_key
from data_prep.filters.near_duplicates import near_signature, near_survivors

WORDS = [f"word{number}" for number in range(400)]


def partitioned(items, sizes):
    """`items` cut into consecutive groups; the last one takes what is left."""
    ends = list(itertools.accumulate(sizes))
    return [items[start:end] for start, end in itertools.pairwise([0, *ends, len(items)])]


def test_keys_fold_white_space_and_nothing_else():
    assert text_key("a  b\n\tc\u00a0d ") == text_key("a b c d")
    others = {text_key(text) for text in ("a b c d", "A b c d", "ab c d", "a b c", "", "á b c d")}
    assert len(others) == 6
    assert len(text_key("")) == 16
    assert len(text_key("lone \ud800 surrogate")) == 16


def first_occurrences(keys):
    """The plain meaning of exact_survivors over one list of keys."""
    first = {}
    return [-1 if first.setdefault(key, index) == index else first[key] for index, key in enumerate(keys)]


# The first halves are few, so that many keys share one half alone, and lie at both ends of their range.
halves = st.sampled_from([0, 1, 2**63 - 1, 2**63, 2**64 - 1])


@settings(deadline=None)
@given(
    keys=st.lists(st.tuples(halves, st.integers(0, 2)), max_size=60),
    sizes=st.lists(st.integers(0, 20), max_size=4),
    keys_a_pass=st.sampled_from([1, 2, 7, 1 << 23]),
)
def test_the_first_of_equal_keys_survives(keys, sizes, keys_a_pass):
    parts = partitioned(np.array(keys, dtype=np.uint64).reshape(-1, 2), sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact_duplicates, "KEYS_A_PASS", keys_a_pass)
        found = exact_survivors(parts)
    assert [len(part) for part in found] == [len(part) for part in parts]
    assert all(part.dtype == np.int64 for part in found)
    assert np.concatenate(found).tolist() == first_occurrences(keys)


def test_exact_survivors_of_texts_in_memory_maps(tmp_path):
    texts = ["one two", "three", "one  two", "four", "three ", "one two\n"]
    keys = np.frombuffer(b"".join(map(text_key, texts)), dtype="<u8").reshape(-1, 2)
    parts = []
    for number, part in enumerate(partitioned(keys, [2, 0, 3])):
        np.save(tmp_path / f"{number}.npy", part)
        parts.append(np.load(tmp_path / f"{number}.npy", mmap_mode="r"))
    assert [part.tolist() for part in exact_survivors(parts)] == [[-1, -1], [], [0, -1, 1], [0]]
    assert exact_survivors([]) == []


def plain_shared(evaluation, text, n):
    """The plain meaning of EvaluationNgrams."""

    def ngrams(text):
        words = re.findall(r"\w+", text.lower())
        return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]

    known = {ngram for text in evaluation for ngram in ngrams(text)}
    return next((ngram for ngram in ngrams(text) if ngram in known), None)


texts = st.lists(
    st.sampled_from(["the", "The", "cat", "sat", "on", "mat,", "-", "Ünï", "İ", "猫", "x" * 100]), max_size=30
).map(" ".join)


@settings(deadline=None)
@given(evaluation=st.lists(texts, max_size=4), text=texts, n=st.integers(2, 5))
def test_shared_ngrams_are_those_of_the_plain_definition(evaluation, text, n):
    ngrams = EvaluationNgrams.of(iter(evaluation), n)
    assert ngrams.shared(text) == plain_shared(evaluation, text, n)
    assert ngrams.too_short == sum(len(re.findall(r"\w+", text.lower())) < n for text in evaluation)


def test_an_ngram_in_the_middle_of_long_texts_is_found_and_almost_one_is_not():
    draw = random.Random(1)
    corpus = [" ".join(draw.choices(WORDS, k=3000)) for _ in range(20)]
    held_out = [" ".join(draw.choices(WORDS, k=3000)) for _ in range(20)]
    ngrams = EvaluationNgrams.of(held_out, 13)
    assert [ngrams.shared(text) for text in corpus] == [None] * 20
    leaked = held_out[3].split()[1000:1013]
    words = corpus[0].split()
    with_leak = " ".join([*words[:700], *(f"{word.upper()}," for word in leaked), *words[700:]])
    assert ngrams.shared(with_leak) == " ".join(leaked)
    assert ngrams.shared(" ".join([*words[:700], *leaked[:12], *words[700:]])) is None
    assert ngrams.shared(" ".join([*words[:700], *reversed(leaked), *words[700:]])) is None


def test_ngrams_do_not_depend_on_the_process():
    code = "from data_prep.filters.evaluation_ngrams import EvaluationNgrams as E\n"
    code += "print(E.of(['a b c d', 'e f g'], 3)._hashes.tolist())"
    runs = {
        subprocess.run(
            [sys.executable, "-P", "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


def test_remembered_words_stay_bounded(monkeypatch):
    monkeypatch.setattr(word_ngrams, "_CACHED_WORDS", 50)
    monkeypatch.setattr(word_ngrams, "_word_hashes", word_ngrams._WordHashes())
    held_out = " ".join(WORDS)
    ngrams = EvaluationNgrams.of([held_out], 13)
    assert ngrams.shared(f"{'y' * 1000} {held_out}") == " ".join(WORDS[:13])
    assert len(word_ngrams._word_hashes) <= 50
    assert max(map(len, word_ngrams._word_hashes)) <= 64


def edited(words, rate, draw):
    """The words with a share of them replaced."""
    return [draw.choice(WORDS) if draw.random() < rate else word for word in words]


def jaccard(left, right):
    def shingles(words):
        return {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))}

    a, b = shingles(left), shingles(right)
    return len(a & b) / len(a | b)


def test_signatures_estimate_the_jaccard_similarity_of_shingles():
    draw = random.Random(2)
    for rate in (0.0, 0.01, 0.05, 0.2, 1.0):
        left = draw.choices(WORDS, k=2000)
        right = edited(left, rate, draw)
        pair = near_signature(" ".join(left)), near_signature(" ".join(right).upper())
        assert [(s.shape, s.dtype) for s in pair] == [((128,), np.uint32)] * 2
        true = jaccard(left, right)
        assert abs(np.mean(pair[0] == pair[1]) - true) <= 4 * np.sqrt(true * (1 - true) / 128)  # 4 sigma


def test_short_texts_have_signatures_of_their_own():
    texts = ["", "...", "§ §", "one", "two", "one two", "two one", "one two three four", "one two three four five"]
    assert len({near_signature(text).tobytes() for text in texts}) == len(texts)
    assert (near_signature("One, two") == near_signature("one two")).all()


def test_signatures_of_long_texts_do_not_depend_on_the_block(monkeypatch):
    text = " ".join(random.Random(3).choices(WORDS, k=500))
    whole = near_signature(text)
    monkeypatch.setattr(near_duplicates, "SHINGLES_AT_ONCE", 7)
    assert (near_signature(text) == whole).all()


def corpus_of_near_copies(seed):
    """About 120 documents, many of them edited copies of others; their signatures."""
    draw = random.Random(seed)
    originals = [draw.choices(WORDS, k=draw.randint(3, 300)) for _ in range(30)]
    documents = [edited(draw.choice(originals), draw.choice([0, 0.01, 0.03, 0.06, 0.1]), draw) for _ in range(120)]
    return np.array([near_signature(" ".join(words)) for words in documents])


def library_survivors(signatures, alive, threshold):
    """The same by datasketch's own index, with the same bands, one document after the other."""
    from datasketch import MinHash, MinHashLSH

    bands = near_duplicates._bands(threshold)
    index = MinHashLSH(num_perm=128, params=(len(bands), bands[0].stop))
    survivors = [-1] * len(signatures)
    kept = {}
    for number in np.flatnonzero(alive).tolist():
        minhash = MinHash(hashvalues=signatures[number], scheme="affine32")
        near = [other for other in index.query(minhash) if minhash.jaccard(kept[other]) >= threshold]
        if near:
            survivors[number] = min(near)
        else:
            index.insert(number, minhash)
            kept[number] = minhash
    return survivors


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("seed", [4, 5])
def test_survivors_are_those_of_the_librarys_own_index(threshold, seed):
    signatures = corpus_of_near_copies(seed)
    alive = np.random.default_rng(seed).random(len(signatures)) < 0.9
    expected = library_survivors(signatures, alive, threshold)
    assert 10 < sum(survivor >= 0 for survivor in expected) < 110
    for sizes in ([], [40, 0, 30], [1] * 50):
        found = near_survivors(partitioned(signatures, sizes), partitioned(alive, sizes), threshold)
        assert np.concatenate(found).tolist() == expected
        assert [len(part) for part in found] == [len(part) for part in partitioned(signatures, sizes)]


def test_only_survivors_drop_others_and_the_dead_neither_drop_nor_are_dropped():
    """a - b - c, where a and c are not near each other: b goes, so c stays."""
    a = np.arange(128, dtype=np.uint32)
    b, c = a.copy(), a.copy()
    b[:16] += 1000
    c[:32] += 1000
    signatures = [np.array([a, b]), np.array([c, b, a])]
    everyone = [np.ones(2, dtype=bool), np.ones(3, dtype=bool)]
    assert [part.tolist() for part in near_survivors(signatures, everyone, 0.8)] == [[-1, 0], [-1, 0, 0]]
    without_a = [np.array([False, True]), np.array([True, True, True])]
    assert [part.tolist() for part in near_survivors(signatures, without_a, 0.8)] == [[-1, -1], [1, 1, 1]]
    nobody = [np.zeros(2, dtype=bool), np.zeros(3, dtype=bool)]
    assert [part.tolist() for part in near_survivors(signatures, nobody, 0.8)] == [[-1, -1], [-1, -1, -1]]
    empty = [np.empty((0, 128)), *signatures]
    assert [len(part) for part in near_survivors(empty, [np.empty(0, dtype=bool), *everyone], 0.8)] == [0, 2, 3]
    assert near_survivors([], [], 0.8) == []


@settings(deadline=None)
@given(threshold=st.floats(0.05, 1))
def test_pairs_at_the_threshold_become_candidates(threshold):
    bands = near_duplicates._bands(threshold)
    rows = bands[0].stop
    assert all(band.stop - band.start == rows for band in bands)
    assert bands[-1].stop <= 128 < bands[-1].stop + rows
    assert rows == 1 or 1 - (1 - threshold**rows) ** len(bands) >= 0.99


def test_a_missing_library_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(UserError, match=r"pip install 'narrowbert\[dedup\]'"):
        near_signature("some text")
