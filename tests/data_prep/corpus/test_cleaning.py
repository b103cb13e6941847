import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.contract.text.cleaning_rules import WINDOWS_CONTROLS
from data_prep.corpus.cleaning import clean, cut_text

# All of Unicode, lone surrogates too, and often what needs care.
TEXTS = st.text(
    st.one_of(
        st.characters(),
        st.sampled_from(
            "a b\r\n\t\x00\x0b\x85\xa0\xad\u0301\u200b\u200c\u200dक\x92\u2028\u202e\ufeff\ue000\ud83d\ude00e"
            "\u0958\u2adc\u0338→"
        ),
    )
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain ASCII\twith\nlines", "plain ASCII\twith\nlines"),
        ("a\r\nb\rc\u2028e\u2029f", "a\nb\nc\ne\nf"),
        ("\ufeffone\ufefftwo", " one two"),
        ("a\x00b\x07c\x1bd\x7fe\x9df\x0bg", "a b c d e f g"),
        ("don\x92t wait\x85 \x93now\x94 \x80 5", "don’t wait… “now” € 5"),
        ("one\u200btwo\u200cthree", "one two three"),
        ("می\u200cخواهم क्\u200dष 👨\u200d👩\u200d👧", "می\u200cخواهم क्\u200dष 👨\u200d👩\u200d👧"),
        ("ශ\u0dca\u200dර\u0dd3 র\u200c\u09cdয ✌️\u200d!", "ශ\u0dca\u200dර\u0dd3 র\u200c\u09cdয ✌️\u200d!"),
        ("a\u200db \u200c\xa0\u200c\xa0 क\u200d\u200d\u200cख", "ab  \xa0 \xa0 क\u200dख"),
        ("soft\xadhyphen word\u2060joiner", "softhyphen wordjoiner"),
        ("\u202bשלום\u202c \u2066abc\u2069\u200f", "שלום abc"),
        ("icon\uf0b7text\U000f0001end\ufdd0x", "icon text end x"),
        ("e\u0301 \u1112\u1161\u11ab \u212b", "é 한 Å"),
        ("a\ud800b", "a\ufffdb"),
        ("\ud83d\ude00 \U0001f600", "\U0001f600 \U0001f600"),
        ("[MASK] [CLS]", "[MASK] [CLS]"),
    ],
)
def test_examples(text, expected):
    assert clean(text) == expected


@given(TEXTS)
def test_clean_text_is_encodable_normal_and_stays_as_it_is(text):
    cleaned = clean(text)
    cleaned.encode()
    assert unicodedata.is_normalized("NFC", cleaned)
    assert clean(cleaned) == cleaned
    assert not [c for c in cleaned if unicodedata.category(c) in ("Cc", "Co", "Cs") and c not in "\t\n"]


@given(TEXTS)
def test_words_are_never_joined(text):
    # Whatever is no letter, mark, number, punctuation or symbol, and is not made to stand inside a word, separates.
    separators = {c for c in text if unicodedata.category(c) in ("Cc", "Zl", "Zp", "Co") or c in "\u200b\ufeff"}
    separators -= set(WINDOWS_CONTROLS)
    apart = text
    for separator in separators:
        apart = apart.replace(separator, " ")
    assert clean(text).split() == clean(apart).split()


@given(TEXTS, st.integers(1, 12))
def test_split_loses_nothing_but_white_space(text, max_characters):
    pieces = list(cut_text(text, max_characters))
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(len(piece) <= max_characters for piece in pieces)
    assert all(pieces[:-1])


@given(st.lists(st.text("abcdefg", min_size=1, max_size=8), min_size=1), st.integers(8, 30))
def test_split_keeps_words_whole(words, max_characters):
    pieces = cut_text(" ".join(words), max_characters)
    assert [word for piece in pieces for word in piece.split()] == words


def test_split_keeps_accents_with_their_letters():
    assert list(cut_text("abcde\u0301fgh", 5)) == ["abcd", "e\u0301fgh"]
