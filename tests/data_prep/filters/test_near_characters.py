import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.filters.near_duplicates import band_table, near_pairs, near_signature, near_survivors
from data_prep.filters.word_ngrams import character_ngram_hashes, characters_of, words_of
from tests.data_prep.filters.generated_text import LETTERS, changed, sentences

CHARACTERS, THRESHOLD = 5, 0.5
COUNT = 60


def dropped(signatures):
    table = band_table(signatures, THRESHOLD, CHARACTERS)
    pairs = near_pairs(table["key"], table["row"].astype(np.int64), lambda rows: signatures[rows], THRESHOLD)
    return near_survivors(pairs)[0].tolist()


def signatures_of(texts):
    return np.array([near_signature(text, CHARACTERS) for text in texts])


@pytest.mark.parametrize("script", LETTERS)
def test_copies_with_a_twentieth_of_their_characters_changed_are_found_and_no_other_document(script):
    texts = ["".join(sentences(script, 30, seed)) for seed in range(COUNT)]
    copies = [changed(text, script, seed) for seed, text in enumerate(texts)]
    found = dropped(signatures_of([*texts, *copies]))
    assert len(found) >= 0.9 * COUNT
    assert min(found) >= COUNT


@pytest.mark.parametrize("script", LETTERS)
def test_documents_that_are_one_template_by_two_fifths_stay(script):
    template = "".join(sentences(script, 12, seed=1_000))
    texts = [template + "".join(sentences(script, 18, seed)) for seed in range(COUNT)]
    assert dropped(signatures_of(texts)) == []


@given(st.text(st.sampled_from("aB é\u0301-'\u200d\n.1क\u093e्_İ𝔸"), max_size=30))
def test_characters_are_those_of_the_words_with_one_blank_between(text):
    assert "".join(map(chr, characters_of(text))) == " ".join(words_of(text))


def test_scripts_without_blanks_get_none():
    assert "".join(map(chr, characters_of(" 你好，  世界。Thai: น้ำใจ "))) == "你好 世界 thai น้ำใจ"


@given(st.text(st.sampled_from("abc人"), max_size=40), st.integers(1, 6))
def test_runs_of_characters_are_told_by_themselves_alone(text, n):
    """By the first half of their hashes, which is what signatures are made of."""
    hashes = character_ngram_hashes(characters_of(text), n) >> np.uint64(32)
    runs = [text[start : start + n] for start in range(len(text) - n + 1)]
    assert len(hashes) == len(runs)
    assert len({(run, value) for run, value in zip(runs, hashes.tolist(), strict=True)}) == len(set(runs))
    assert len(set(hashes.tolist())) == len(set(runs))


def test_signatures_estimate_the_similarity_of_runs_of_characters():
    draw = random.Random(0)
    left = "".join(draw.choices("abcdefgh", k=3_000))
    for rate in (0.0, 0.02, 0.1):
        right = changed(left, "English", 1, rate)
        a, b = ({text[i : i + 7] for i in range(len(text) - 6)} for text in (left, right))
        true = len(a & b) / len(a | b)
        estimate = np.mean(near_signature(left, 7) == near_signature(right.upper(), 7))
        assert abs(estimate - true) <= 4 * np.sqrt(true * (1 - true) / 128)  # 4 sigma


def test_short_texts_have_signatures_of_their_own():
    texts = ["", "...", "§ §", "人", "人人", "ab", "ba", "a b", "abcdefgh"]
    assert len({near_signature(text, 7).tobytes() for text in texts}) == len(texts)
