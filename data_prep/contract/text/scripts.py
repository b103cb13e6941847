"""Scripts that write no blanks between words, and marks, which belong to the letter before them."""

import unicodedata
from collections.abc import Iterable

IDEOGRAPHS = (
    (0x2E80, 0x2FDF),  # radicals
    (0x3005, 0x3007),
    (0x3021, 0x3029),
    (0x3038, 0x303B),
    (0x3041, 0x3096),  # hiragana
    (0x309B, 0x312F),  # more kana, bopomofo
    (0x31A0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),  # kana of half width
    (0x1B000, 0x1B16F),
    (0x20000, 0x3FFFF),
)
"""First and last code points of the characters of Chinese and Japanese, of which one is nearly a word."""

COMPLEX_CONTEXT = (
    (0x0E01, 0x0E3A),  # Thai
    (0x0E40, 0x0E4E),
    (0x0E81, 0x0ECE),  # Lao
    (0x0EDC, 0x0EDF),
    (0x1000, 0x103F),  # Myanmar
    (0x1050, 0x108F),
    (0x109A, 0x109F),
    (0x1780, 0x17D3),  # Khmer
    (0x17D7, 0x17D7),
    (0x17DC, 0x17DD),
    (0x1950, 0x19CF),  # Tai Le, New Tai Lue
    (0x1A20, 0x1A7C),  # Tai Tham
    (0xA9E0, 0xA9EF),  # more Myanmar
    (0xA9FA, 0xA9FE),
    (0xAA60, 0xAADF),  # more Myanmar, Tai Viet
    (0x11700, 0x1172B),  # Ahom
)
"""Letters of South East Asia whose words only a dictionary finds: class SA of the Unicode Standard Annex 14."""

MARK_PLANES = (*range(0x20000), *range(0xE0000, 0xE0200))
"""Code points among which all marks are."""

_LETTERS = "".join(f"\\x{{{first:X}}}-\\x{{{last:X}}}" for first, last in COMPLEX_CONTEXT)

LONG_PHRASE = rf"[{_LETTERS}]{{48,95}}(?!\p{{M}})"
"""A run of letters of South East Asia, at most as long as a word of WordPiece may be (100), cut before no mark."""

_FOLLOWING_VOWELS = "\u0e2f\u0e30\u0e32\u0e33\u0e45\u0e46\u0eb0\u0eb2\u0eb3\u0ec6"
"""Letters of Thai and Lao that no word begins with."""

JOINERS = "\u200c\u200d"
"""ZWNJ and ZWJ, which choose the form of the letters beside them."""


def is_ideograph(character: str) -> bool:
    """Whether the character is of ``IDEOGRAPHS``."""
    return _within(ord(character), IDEOGRAPHS)


def is_complex_context(character: str) -> bool:
    """Whether the character is of ``COMPLEX_CONTEXT``."""
    return _within(ord(character), COMPLEX_CONTEXT)


def may_begin_unspaced_word(character: str) -> bool:
    """Whether a word of a script of South East Asia can begin with the character."""
    return is_complex_context(character) and not is_mark(character) and character not in _FOLLOWING_VOWELS


def is_mark(character: str) -> bool:
    """Whether the character combines with the one before it."""
    return unicodedata.category(character)[0] == "M"


def _within(code: int, ranges: Iterable[tuple[int, int]]) -> bool:
    return any(first <= code <= last for first, last in ranges)
