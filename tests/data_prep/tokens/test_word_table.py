import json
import random
from itertools import starmap

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from data_prep.tokens import word_table as encoding
from data_prep.tokens.word_table import TextEncoder, encodes_word_by_word

PIECES = ["a", "b", "ab", "é", "e", "東", "京", ".", ",", "'", "“", "”", "!", "1", "🙂", "ß", "İ", "i", "ﬁ", "한", "ㅏ"]
NASTY = [
    *PIECES, "A", "É", "e\u0301", "\u0301", "\u0323", " ", "  ", "\n", "\t", "\r", "\x0b", "\x0c", "\x1c", "\x00",
    "\x7f", "\x85", "\xa0", "\xad", "\u200b", "\u200d", "\u2028", "\u3000", "\ufeff", "\ufffd", "[MASK]", "[SEP]",
    "##a", "#", "a" * 101, "Σ", "ς", "\u1100", "\u1161", "\u11a8", "\U000e0041", "—", "…", "«", "`", "~", "{", "_",
    "豈", "一", "\U00020000", "\U0002b820", "か", "가",
]  # fmt: skip
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def bert_tokenizer(lowercase=True, strip_accents=None):
    vocabulary = [*SPECIAL, *PIECES, *(f"##{piece}" for piece in PIECES), "##aa"]
    model = models.WordPiece({piece: number for number, piece in enumerate(vocabulary)}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.encode_special_tokens = True
    return tokenizer


def library(tokenizer, texts):
    return [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def ours(encoder, texts):
    tokens, lengths = encoder.encode(texts)
    assert tokens.dtype == np.uint16
    return [piece.tolist() for piece in np.split(tokens, np.cumsum(lengths)[:-1])] if texts else []


TOKENIZERS = list(starmap(bert_tokenizer, ((True, None), (False, None), (False, True), (True, False))))
ENCODERS = [TextEncoder(tokenizer, np.dtype("<u2")) for tokenizer in TOKENIZERS]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.lists(st.sampled_from(NASTY)).map("".join), min_size=1, max_size=4))
@example(["[MASK] a[SEP]b", "", "e\u0301 \u0301e,\u0301"])
def test_ids_are_the_librarys_on_nasty_text(texts):
    for tokenizer, encoder in zip(TOKENIZERS, ENCODERS, strict=True):
        assert encodes_word_by_word(tokenizer)
        assert ours(encoder, texts) == library(tokenizer, texts)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=3))
def test_ids_are_the_librarys_on_any_unicode(texts):
    for tokenizer, encoder in zip(TOKENIZERS, ENCODERS, strict=True):
        assert ours(encoder, texts) == library(tokenizer, texts)


def test_a_table_that_is_full_is_begun_anew(monkeypatch):
    monkeypatch.setattr(encoding, "TABLE_BYTES", 500)
    encoder = TextEncoder(TOKENIZERS[0], np.dtype("<u2"))
    for texts in (["a b ab 1"], ["é a", "東 e"], ["a b ab 1"]):
        assert ours(encoder, texts) == library(TOKENIZERS[0], texts)
        assert len(encoder._table) <= 4


def test_the_table_is_bounded_in_bytes_whatever_the_words(monkeypatch):
    """Words that never come again are forgotten, an ideograph is a word, and long words do not stay."""
    monkeypatch.setattr(encoding, "TABLE_BYTES", 1 << 20)
    draw = random.Random(0)
    encoder = TextEncoder(TOKENIZERS[0], np.dtype("<u2"))
    for number in range(40):
        words = [f"{number}x{draw.random()}x{index}"[:11] for index in range(2000)]
        chinese = "".join(map(chr, draw.choices(range(0x4E00, 0x5000), k=20_000)))
        texts = [" ".join(words), chinese, "x" * 20_000 + str(number), "ก" * 3000 + str(number)]
        assert ours(encoder, texts) == library(TOKENIZERS[0], texts)
        assert encoder._table.num_bytes <= (1 << 20) + 2600 * 300
    assert max(map(len, encoder._table._numbers)) <= 11


def changed(**parts):
    content = json.loads(TOKENIZERS[0].to_str())
    tokenizer = Tokenizer.from_str(json.dumps({**content, **parts}))
    tokenizer.encode_special_tokens = True
    return tokenizer


@pytest.mark.parametrize(
    "tokenizer",
    [
        changed(normalizer=None),
        changed(normalizer={"type": "NFKC"}),
        changed(pre_tokenizer={"type": "WhitespaceSplit"}),
        changed(normalizer={**json.loads(TOKENIZERS[0].to_str())["normalizer"], "clean_text": False}),
    ],
)
def test_other_tokenizers_take_the_librarys_way(tokenizer):
    assert not encodes_word_by_word(tokenizer)
    texts = ["a b\x00ab é.", "", "1 1"]
    assert ours(TextEncoder(tokenizer, np.dtype("<u2")), texts) == library(tokenizer, texts)


def test_tokens_registered_by_the_user_take_the_librarys_way():
    tokenizer = bert_tokenizer()
    tokenizer.add_tokens(["a b"])
    assert not encodes_word_by_word(tokenizer)
    assert ours(TextEncoder(tokenizer, np.dtype("<u2")), ["a b a b"]) == library(tokenizer, ["a b a b"])
