"""Text of many languages: training and an export see the same tokens, and no script is destroyed."""

import json
import random
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from data_prep.config import MaskConfig, VocabularyConfig
from data_prep.contract.masking.masks import mask_rows
from data_prep.contract.masking.settings import Masking
from data_prep.contract.tokenizer import continues_word, load_tokenizer, ordinary_ids, save_tokenizer, special_ids
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


def _random_text(consonants, vowels, words_a_phrase, seed):
    draw = random.Random(seed)
    syllables = [consonant + vowel for consonant in consonants for vowel in vowels]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(800)]
    weights = [1 / (1 + number) for number in range(800)]
    phrases = ["".join(draw.choices(words, weights, k=words_a_phrase)) for _ in range(15_000 // words_a_phrase)]
    return [" ".join(phrases[number : number + 20]) + "." for number in range(0, len(phrases), 20)]


# Byte-level BPE cuts at vowel signs, which stay with the letters before them.
@pytest.mark.parametrize(("model", "least"), [("wordpiece", 0.9), ("bpe", 0.5)])
def test_masks_of_whole_words_have_as_many_runs_in_thai_as_in_english(model, least):
    runs = {}
    for language, texts in (
        ("English", _random_text("bcdfglmnprstvw", "aeiou", 1, 0)),
        ("Thai", _random_text("กขคงจชตทนบปพมยรลวสห", ["", "\u0e31", "\u0e34", "\u0e48", "\u0e32"], 10, 1)),
    ):
        tokenizer = train_tokenizer(lambda texts=texts: texts, VocabularyConfig(model=model, size=3000))
        special = special_ids(tokenizer)
        ids = [i for text in texts for i in tokenizer.encode(text, add_special_tokens=False).ids]
        assert special["unk"] not in ids
        rows = np.array([[special["cls"], *ids[n : n + 126], special["sep"]] for n in range(0, 6000, 126)], "<u2")
        masking = Masking(
            mask=MaskConfig(unit="word"),
            masked_per_row=19,
            seed=0,
            unmaskable_ids=np.array([special["cls"], special["sep"], special["pad"]]),
            mask_id=special["mask"],
            ordinary_ids=np.array(ordinary_ids(tokenizer)),
            continues_word=continues_word(tokenizer),
        )
        numbers = np.arange(len(rows), dtype=np.uint64)
        masks = mask_rows(rows, np.full(len(rows), 128, np.uint16), numbers, masking, 2)
        runs[language] = 1 + (np.diff(masks.masked_positions.astype(int), axis=2) > 1).sum(axis=2).mean()
    assert least < runs["Thai"] / runs["English"] < 1.2, runs


def test_tokenizers_from_elsewhere_keep_their_words():
    """The masks of folders that were made with them are drawn again when they are read."""
    tokenizer = train_tokenizer(lambda: [SAMPLES["Thai"]] * 3, VocabularyConfig(size=300))
    content = json.loads(tokenizer.to_str())
    thai = [number for token, number in content["model"]["vocab"].items() if token[:2] == "##" and token[2] in "กขนม"]
    assert thai
    assert not continues_word(tokenizer)[thai].any()
    content["normalizer"] = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                             "strip_accents": None, "lowercase": True}  # fmt: skip
    assert continues_word(Tokenizer.from_str(json.dumps(content)))[thai].all()


def test_long_phrases_without_blanks_are_no_unknown_words():
    phrase = "".join(random.Random(0).choices(["ที่", "นี่", "น้ำ", "มี", "คน"], k=300))
    tokenizer = train_tokenizer(lambda: [phrase, "one text"], VocabularyConfig(size=400))
    tokenizer.encode_special_tokens = True
    assert encodes_word_by_word(tokenizer)
    ids = tokenizer.encode(phrase, add_special_tokens=False).ids
    assert special_ids(tokenizer)["unk"] not in ids
    assert tokenizer.decode(ids).replace(" ", "") == phrase
    pieces = tokenizer.decode(ids).split()
    assert all(48 <= len(piece) <= 95 for piece in pieces[:-1])
    assert not any(unicodedata.category(piece[0]) == "Mn" for piece in pieces)
    assert TextEncoder(tokenizer, np.dtype("<u2")).encode([f"a {phrase}."])[0].tolist() == (
        tokenizer.encode(f"a {phrase}.", add_special_tokens=False).ids
    )
