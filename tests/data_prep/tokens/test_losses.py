"""What is told of the text that a tokenizer loses."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.config import VocabularyConfig
from data_prep.contract.tokenizer import load_tokenizer, save_tokenizer, special_ids
from data_prep.corpus.cleaning import clean
from data_prep.tokens.losses import TokenCounter, notes_on_losses, stripped_marks
from data_prep.tokens.vocabulary import train_tokenizer
from data_prep.tokens.word_table import TextEncoder
from tests.data_prep.tokens.languages import SAMPLES


def tokenizer_of(texts, tmp_path, **config):
    tokenizer = train_tokenizer(lambda: texts, VocabularyConfig(**{"min_frequency": 1, **config}))
    save_tokenizer(tokenizer, tmp_path / "t.json")
    return load_tokenizer(tmp_path / "t.json")


def counted(tokenizer, texts):
    counter = TokenCounter(TextEncoder(tokenizer, np.dtype("<u2")), special_ids(tokenizer)["unk"])
    for text in texts:
        counter.add("all", text)
    counts = counter.taken()
    assert counter.taken() == {}
    return counts["all"]


def unknown_share(tokenizer, texts):
    counts = counted(tokenizer, texts)
    return counts["unknown_tokens"] / counts["tokens"]


def test_tokens_are_counted_as_the_library_makes_them(tmp_path):
    tokenizer = tokenizer_of(["abc abd", "b"], tmp_path, size=100)
    texts = ["abc xyz", "", "q", *["abd"] * 5]
    tokens = [token for text in texts for token in tokenizer.encode(text, add_special_tokens=False).tokens]
    assert counted(tokenizer, texts) == {
        "words": 8,
        "tokens": len(tokens),
        "unknown_tokens": tokens.count("[UNK]"),
        "sampled_characters": sum(map(len, texts)),
        "stripped_marks": 0,
    }
    assert counted(tokenizer, ["abc " * 200_000, "x"])["unknown_tokens"] == 1


@settings(max_examples=10)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.text(alphabet="abcx ", max_size=12)), max_size=12))
def test_each_group_has_the_counts_of_its_own_texts(known_tokenizer, texts):
    counter = TokenCounter(TextEncoder(known_tokenizer, np.dtype("<u2")), special_ids(known_tokenizer)["unk"])
    for group, text in texts:
        counter.add(group, text)
    expected = {group: counted(known_tokenizer, [t for g, t in texts if g == group]) for group, _ in texts}
    assert counter.taken() == expected


@pytest.fixture(scope="module")
def known_tokenizer(tmp_path_factory):
    return tokenizer_of(["abc abd", "b"], tmp_path_factory.mktemp("tokenizer"), size=100)


@pytest.mark.parametrize("model", ["wordpiece", pytest.param("unigram", marks=pytest.mark.slow)])
def test_the_alphabet_covers_chinese_by_default(tmp_path, model):
    """3,000 characters, most of them rare: a thousand would leave every fifteenth word unknown."""
    draw = random.Random(0)
    characters = [chr(0x4E00 + number) for number in range(3000)]
    weights = [1 / (1 + number) for number in range(3000)]
    texts = ["".join(draw.choices(characters, weights, k=200)) for _ in range(400)]
    tokenizer = tokenizer_of(texts, tmp_path, model=model, size=12_100)
    share = unknown_share(tokenizer, texts)
    assert share < 0.002
    assert not notes_on_losses(share, {})
    few = tokenizer_of(texts, tmp_path / "few", model=model, size=12_100, alphabet_size=1000)
    assert unknown_share(few, texts) > 0.05
    assert "[UNK]" in notes_on_losses(unknown_share(few, texts), {})[0]
    small = tokenizer_of(texts, tmp_path / "small", model=model, size=6000)
    assert len([token for token in small.get_vocab() if len(token) == 1]) <= 1600


def test_stripped_marks_are_counted_where_they_tell_words_apart(tmp_path):
    folded = tokenizer_of(list(SAMPLES.values()), tmp_path, size=2000)

    def notes(language, tokenizer):
        return notes_on_losses(0.0, stripped_marks(tokenizer, clean(SAMPLES[language])))

    for language in ("Vietnamese", "Turkish", "Czech", "German", "French"):
        assert "strip_accents false" in notes(language, folded)[0], language
    for language in ("English", "Hindi", "Thai", "Japanese", "Korean", "Hebrew", "Arabic", "Persian", "emoji"):
        assert not notes(language, folded), language
    cased = tokenizer_of(list(SAMPLES.values()), tmp_path / "cased", size=2000, strip_accents=False)
    assert not any(notes(language, cased) for language in SAMPLES)
    asked = tokenizer_of(list(SAMPLES.values()), tmp_path / "asked", size=2000, strip_accents=True)
    counts = stripped_marks(asked, SAMPLES["Thai"])
    assert counts == {"sampled_characters": len(SAMPLES["Thai"]), "stripped_marks": 15}
    assert stripped_marks(asked, "Tất cả") == {"sampled_characters": 6, "stripped_marks": 2}
