import itertools
import os
import random
import re
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.contract.command_line import UserError
from data_prep.contract.text.scripts import JOINERS, is_complex_context, is_ideograph
from data_prep.filters import near_duplicates, word_ngrams
from data_prep.filters.evaluation_ngrams import EvaluationNgrams
from data_prep.filters.exact_duplicates import equal_keys, key_table, text_key
from data_prep.filters.near_duplicates import (
    KeptSignatures,
    band_table,
    distinct_pairs,
    near_pairs,
    near_signature,
    near_survivors,
)
from data_prep.filters.word_ngrams import as_text, ngram_hashes, weighted_ngram_hashes, words_of
from data_prep.stages.duplicates import _by_part
from tests.data_prep.filters.generated_text import LETTERS, sentences

WORDS = [f"word{number}" for number in range(400)]


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


@given(
    keys=st.lists(st.tuples(halves, st.integers(0, 2)), max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    limits=st.lists(halves, max_size=3),
)
def test_the_first_of_equal_keys_survives(keys, cuts, limits):
    """Parts make tables, ranges of the keys are looked at one by one: the same as over one list of keys."""
    all_keys = np.array(keys, dtype=np.uint64).reshape(-1, 2)
    tables, found = [], {}
    edges = [0, *sorted(min(cut, len(keys)) for cut in cuts), len(keys)]
    for start, end in itertools.pairwise(edges):
        table, repeats = key_table(all_keys[start:end])
        assert table.tolist() == sorted(table.tolist())
        tables.append((start, table))
        found |= {start + row: start + first for row, first in repeats.tolist()}
    later = {}
    for low, high in itertools.pairwise(sorted({0, *limits, 2**64})):
        parts = [(s, t[(t["high"] >= low) & (t["high"] <= high - 1)]) for s, t in tables]
        documents = np.concatenate([start + table["row"].astype(np.int64) for start, table in reversed(parts)])
        high_halves, low_halves = (np.concatenate([t[half] for _, t in reversed(parts)]) for half in ("high", "low"))
        later |= dict(zip(*(column.tolist() for column in equal_keys(high_halves, low_halves, documents)), strict=True))
    found = {row: later.get(first, first) for row, first in found.items()} | later
    assert [found.get(row, -1) for row in range(len(keys))] == first_occurrences(keys)


def plain_words(text):
    """The plain meaning of words_of, one character after the other."""
    words, before = [], None
    for character in text.lower():
        if character in JOINERS or unicodedata.category(character)[0] == "M":
            if before is None:
                words.append("")
                before = "joined"
            words[-1] += character
        elif not re.match(r"\w", character):
            before = None
        elif is_ideograph(character) or is_complex_context(character):
            words.append(character)
            before = "alone"
        else:
            if before != "joined":
                words.append("")
            words[-1] += character
            before = "joined"
    return [word for word in (re.sub(f"[{JOINERS}]", "", word) for word in words) if word]


@settings(deadline=None)
@given(text=st.text(alphabet="ab 1é_人カー\u3099กที\u0301\u093fक\u200c\u200d-。İ\ud800𠀀", max_size=30))
def test_words_are_those_of_the_plain_definition(text):
    assert words_of(text) == plain_words(text)


def test_words_of_other_scripts():
    assert words_of("किताब कुतुब हिन्दी") == ["किताब", "कुतुब", "हिन्दी"]
    assert words_of("我们 go去") == ["我", "们", "go", "去"]
    assert words_of("ที่นี่ มีน้ำ") == ["ที่", "นี่", "มี", "น้", "ำ"]
    assert words_of("می\u200cخواهم") == ["میخواهم"]
    assert as_text(words_of("去 Beijing 北京, now here")) == "去 beijing 北京 now here"


def plain_shared(evaluation, text, n):
    """The plain meaning of EvaluationNgrams, for words that all weigh the same."""

    def ngrams(text):
        words = plain_words(text)
        return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]

    known = {ngram for text in evaluation for ngram in ngrams(text)}
    return next((ngram for ngram in ngrams(text) if ngram in known), None)


texts = st.lists(
    st.sampled_from(["the", "The", "cat", "sat", "on", "mat,", "-", "Ünï", "İ", "हिन्दी", "x" * 100]), max_size=30
).map(" ".join)


@settings(deadline=None)
@given(evaluation=st.lists(texts, max_size=4), text=texts, n=st.integers(2, 5))
def test_shared_ngrams_are_those_of_the_plain_definition(evaluation, text, n):
    ngrams = EvaluationNgrams.of(iter(evaluation), n)
    assert ngrams.shared(text) == plain_shared(evaluation, text, n)
    assert ngrams.too_short == sum(len(plain_words(text)) < n for text in evaluation)


@given(words=st.lists(st.sampled_from(["a", "bc", "人", "的", "น้", "1"]), max_size=40), n=st.integers(2, 6))
def test_runs_weigh_as_much_as_n_words(words, n):
    """Two ideographs are a word, and so are three Thai letters; a run is told by its words alone."""
    hashes, ends = weighted_ngram_hashes(words, n)
    weights = [{"人": 3, "的": 3, "น้": 2}.get(word, 6) for word in words]
    expected = []
    for begin in range(len(words)):
        end = next((e for e in range(begin, len(words) + 1) if sum(weights[begin:e]) >= 6 * n), None)
        expected += [] if end is None else [end]
    assert ends.tolist() == expected
    runs = [tuple(words[begin:end]) for begin, end in enumerate(expected)]
    assert len(set(hashes.tolist())) == len(set(runs))
    plain = [ngram_hashes(run, len(run))[0] for run in runs]
    assert hashes.tolist() == plain


@pytest.mark.parametrize("script", LETTERS)
def test_an_evaluation_text_is_found_in_every_script(script):
    held_out = "".join(sentences(script, 4, seed=1))
    document = "".join(sentences(script, 100, seed=2))
    ngrams = EvaluationNgrams.of([held_out], 13)
    assert ngrams.too_short == 0
    assert ngrams.shared(document) is None
    middle = len(document) // 2
    assert ngrams.shared(document[:middle] + held_out + document[middle:])


@pytest.mark.parametrize("script", LETTERS)
def test_documents_with_a_twentieth_of_their_text_changed_are_near_in_every_script(script):
    first = sentences(script, 60, seed=3)
    later = [*first[:10], *sentences(script, 3, seed=4), *first[13:]]  # 5% of 60
    other = sentences(script, 60, seed=5)
    signatures = [near_signature("".join(found)) for found in (first, later, other)]
    assert np.mean(signatures[0] == signatures[1]) >= 0.8
    assert np.mean(signatures[0] == signatures[2]) < 0.3


@pytest.mark.parametrize("script", ["Chinese", "Thai"])
def test_a_twentieth_of_all_characters_changed_leaves_documents_near(script):
    draw = random.Random(6)
    text = "".join(sentences(script, 60, seed=3))
    changed = "".join(draw.choice(LETTERS[script][0]) if draw.random() < 0.05 else character for character in text)
    assert np.mean(near_signature(text) == near_signature(changed)) >= 0.4


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


def survivors_of(signatures, threshold, ranges=((0, 2**64),)):
    """[documents] -1 or the survivor, by bands, ranges of their keys, pairs and survivors."""
    table = band_table(signatures, threshold)
    pairs = [np.empty((0, 2), dtype=np.int64)]
    for low, high in ranges:
        inside = table[(table["key"] >= np.uint64(low)) & (table["key"] <= np.uint64(high - 1))]
        pairs.append(near_pairs(inside["key"], inside["row"].astype(np.int64), lambda d: signatures[d], threshold))
    found = np.full(len(signatures), -1)
    documents, survivors = near_survivors(np.concatenate(pairs))
    found[documents] = survivors
    return found.tolist()


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("seed", [4, 5])
def test_survivors_are_those_of_the_librarys_own_index(threshold, seed, monkeypatch):
    signatures = corpus_of_near_copies(seed)
    expected = library_survivors(signatures, np.ones(len(signatures), dtype=bool), threshold)
    assert 10 < sum(survivor >= 0 for survivor in expected) < 110
    assert survivors_of(signatures, threshold) == expected
    assert survivors_of(signatures, threshold, ((0, 2**62), (2**62, 2**63 + 5), (2**63 + 5, 2**64))) == expected
    monkeypatch.setattr(near_duplicates, "DOCUMENTS_AT_ONCE", 3)
    assert survivors_of(signatures, threshold) == expected


def test_only_survivors_drop_others():
    """a - b - c, where a and c are not near each other: b goes, so c stays."""
    a = np.arange(128, dtype=np.uint32)
    b, c = a.copy(), a.copy()
    b[:16] += 1000
    c[:32] += 1000
    assert survivors_of(np.array([a, b, c, b, a]), 0.8) == [-1, 0, -1, 0, 0]
    assert survivors_of(np.array([b, c, b, a]), 0.8) == [-1, 0, 0, 0]
    assert survivors_of(np.empty((0, 128), dtype=np.uint32), 0.8) == []


def test_documents_of_one_template_are_compared_with_few_others(monkeypatch):
    """Documents that share a band and are not near each other, the worst case: entries compared grow linearly."""
    draw = np.random.default_rng(1)
    compared, count_nonzero = [], np.count_nonzero
    monkeypatch.setattr(
        np, "count_nonzero", lambda equal, **axis: compared.append(equal.size) or count_nonzero(equal, **axis)
    )
    totals = []
    for count in (500, 2_000):
        signatures = draw.integers(0, 2**32, (count, 128), dtype=np.uint32)
        signatures[:, :64] = 7
        compared.clear()
        table = band_table(signatures, 0.8)
        assert len(near_pairs(table["key"], table["row"].astype(np.int64), lambda d, s=signatures: s[d], 0.8)) == 0
        totals.append(sum(compared))
    assert totals[0] > 0
    assert totals[1] <= 4.3 * totals[0]


@settings(deadline=None)
@given(wanted=st.lists(st.sets(st.integers(0, 60), max_size=30), max_size=6), most=st.integers(0, 80))
def test_a_signature_is_read_once_while_there_is_room(wanted, most):
    signatures = np.random.default_rng(2).integers(0, 2**32, (61, 128), dtype=np.uint32)
    read = []
    kept = KeptSignatures(lambda documents: read.extend(documents.tolist()) or signatures[documents], most)
    for documents in (np.array(sorted(some), dtype=np.int64) for some in wanted):
        assert (kept.of(documents) == signatures[documents]).all()
    if most >= 61:
        assert sorted(read) == sorted(set().union(*wanted))
    assert len(kept._documents) <= most


@settings(deadline=None)
@given(found=st.lists(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2**40)), max_size=20), max_size=4))
def test_pairs_that_several_bands_found_are_kept_once(found):
    pairs = distinct_pairs([np.array(some, dtype=np.int64).reshape(-1, 2) for some in found])
    assert [tuple(pair) for pair in pairs.tolist()] == sorted(
        {pair for some in found for pair in some}, key=lambda p: p[::-1]
    )


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 3), min_size=1, max_size=8), data=st.data())
def test_documents_are_looked_up_in_the_task_that_has_them(sizes, data):
    starts = np.cumsum([0, *sizes])
    owners = [part for part, size in enumerate(sizes) for _ in range(size)]
    documents = sorted(data.draw(st.sets(st.sampled_from(range(len(owners)))))) if owners else []
    found = {part: documents[here] for part, here in _by_part(starts, np.array(documents, dtype=np.int64))}
    assert found == {part: mine for part in range(len(sizes)) if (mine := [d for d in documents if owners[d] == part])}


@settings(deadline=None)
@given(threshold=st.floats(0.05, 1), shingle=st.sampled_from([(None, 0.99), (5, 0.85)]))
def test_pairs_at_the_threshold_become_candidates(threshold, shingle):
    characters, recall = shingle
    bands = near_duplicates._bands(threshold, characters)
    rows = bands[0].stop
    assert all(band.stop - band.start == rows for band in bands)
    assert bands[-1].stop <= 128 < bands[-1].stop + rows
    assert rows == 1 or 1 - (1 - threshold**rows) ** len(bands) >= recall


def test_a_missing_library_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(UserError, match=r"pip install 'narrowbert\[dedup\]'"):
        near_signature("some text")
