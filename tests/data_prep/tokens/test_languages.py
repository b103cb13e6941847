"""Text of many languages: training and an export see the same tokens, and no script is destroyed."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from data_prep.config import VocabularyConfig
from data_prep.contract.tokenizer import load_tokenizer, save_tokenizer
from data_prep.corpus.cleaning import clean
from data_prep.tokens.vocabulary import train_tokenizer
from data_prep.tokens.word_table import TextEncoder, encodes_word_by_word
from tests.data_prep.tokens.languages import SAMPLES

KINDS = [("wordpiece", True, None), ("wordpiece", False, None), ("wordpiece", True, True), ("bpe", True, None),
         ("bpe", False, None), ("unigram", True, None)]  # fmt: skip


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: "-".join(map(str, kind)))
def path(request, tmp_path_factory):
    """A tokenizer.json trained on all samples."""
    model, lowercase, strip_accents = request.param
    config = VocabularyConfig(
        model=model, lowercase=lowercase, strip_accents=strip_accents, size=1500, min_frequency=1, alphabet_size=700
    )
    path = tmp_path_factory.mktemp("languages") / "tokenizer.json"
    texts = [clean(text) for text in SAMPLES.values()]
    save_tokenizer(train_tokenizer(lambda: texts, config), path)
    return path


def test_training_and_an_export_see_the_same_ids(path):
    encoder = TextEncoder(load_tokenizer(path), np.dtype("<u2"))
    exported = PreTrainedTokenizerFast(tokenizer_file=str(path))  # the class that an export names
    for language, text in SAMPLES.items():
        ids, _ = encoder.encode([clean(text)])
        assert ids.tolist() == exported(text, add_special_tokens=False)["input_ids"], language
        decomposed = unicodedata.normalize("NFD", text)
        assert ids.tolist() == exported(decomposed, add_special_tokens=False)["input_ids"], language


PARTS = st.sampled_from(
    [*"aé東カがカ\u3099กที\u0301\u0338<=≠한ी्क \n.\u200c\u200d\ufe0f❤ـ\u064b\xad\x92\x85\u200b\ufffdİΣ", "\r\n"]
)


@pytest.fixture(scope="module")
def sides(path):
    tokenizer = load_tokenizer(path)
    return tokenizer, TextEncoder(tokenizer, np.dtype("<u2"))


@settings(max_examples=150, deadline=None)
@given(text=st.lists(PARTS | st.characters(exclude_categories=["Cs"]), max_size=12).map("".join))
def test_cleaned_text_has_the_ids_of_the_text(sides, text):
    tokenizer, encoder = sides
    ids, _ = encoder.encode([clean(text)])
    assert ids.tolist() == tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(("model", "by_words"), [("wordpiece", True), ("bpe", False)])
def test_a_tokenizer_trained_here_is_encoded_word_by_word(model, by_words):
    tokenizer = train_tokenizer(lambda: ["one text"], VocabularyConfig(model=model, size=300))
    tokenizer.encode_special_tokens = True
    assert encodes_word_by_word(tokenizer) == by_words


@pytest.mark.parametrize("model", ["wordpiece", "bpe", "unigram"])
def test_accents_are_stripped_where_they_are_no_vowels(model):
    tokenizer = train_tokenizer(lambda: ["one text"], VocabularyConfig(model=model, size=300))
    assert tokenizer.normalizer is not None
    normalize = tokenizer.normalizer.normalize_str
    for language in ("Hebrew", "Arabic", "Hindi", "Bengali", "Malayalam", "Sinhala", "Thai", "Burmese", "Korean"):
        assert normalize(clean(SAMPLES[language])) == clean(SAMPLES[language])
    assert normalize("ガラスのがいこくじん") == "ガラスのがいこくじん"
    assert normalize("Élève ÖL Ёлка Ελλάδα Tất cả") == "eleve ol елка ελλαδα tat ca"
    asked = train_tokenizer(lambda: ["one text"], VocabularyConfig(model=model, size=300, strip_accents=True))
    assert asked.normalizer is not None
    assert asked.normalizer.normalize_str("ที่นี่") == "ทน"
