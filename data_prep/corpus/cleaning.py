"""Text -> the text that is tokenized: one Unicode form, one line end, and nothing invisible.

Tokenizers drop control and format characters and so join the words on both sides of them. Here each of these
characters is either a space (it stood between words) or nothing (it stood inside one).
"""

import re
import unicodedata
from collections.abc import Iterator

_LINE_ENDS = "\r\x85\u2028\u2029"

# What belongs inside a word: soft hyphen, joiner, bidi marks, embeddings and isolates, invisible operators, tags.
_INSIDE_WORDS = "\xad\u061c\u200d-\u200f\u202a-\u202e\u2060-\u206f\U000e0000-\U000e007f"

# Controls, zero-width spaces, private use and noncharacters, which tokenizers drop as well.
_BETWEEN_WORDS = (
    "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u180e\u200b\u200c\ue000-\uf8ff\ufdd0-\ufdef\ufeff\ufff9-\ufffb"
    "\ufffe\uffff\U000f0000-\U0010ffff"
)

_SURROGATE = re.compile("[\ud800-\udfff]")
_ANY = re.compile(f"[{_LINE_ENDS}{_INSIDE_WORDS}{_BETWEEN_WORDS}\ud800-\udfff]")
_REPLACEMENTS = (
    (re.compile(f"\r\n|[{_LINE_ENDS}]"), "\n"),
    (re.compile(f"[{_INSIDE_WORDS}]+"), ""),
    (re.compile(f"[{_BETWEEN_WORDS}]+"), " "),
)

_PLAIN_ASCII = bytes([*b"\t\n", *range(0x20, 0x7F)])


def clean(text: str) -> str:
    """Text in NFC with \\n line ends, in which no word is joined to the next.

    Line ends of any kind become \\n. Control characters, byte order marks, zero-width spaces, private-use characters
    and noncharacters become spaces, a row of them one. Soft hyphens, joiners, bidi marks and other format characters
    are removed. Halves of a surrogate pair become one character, or U+FFFD where the other half is missing.
    """
    # Only what is not plain ASCII is looked at closely: most text has little of it.
    rest = text.encode("utf-8", "surrogatepass").translate(None, _PLAIN_ASCII).decode("utf-8", "surrogatepass")
    if not rest:
        return text
    if _ANY.search(rest):
        if _SURROGATE.search(rest):
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        for pattern, replacement in _REPLACEMENTS:
            text = pattern.sub(replacement, text)
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


_SPACES = " \n\t\xa0\u3000"
_LONGEST_CLUSTER = 64


def cut_text(text: str, max_characters: int) -> Iterator[str]:
    """Pieces of at most ``max_characters``, cut at a white space, which is left out, where a piece has some.

    A piece without white space is cut before a character that does not combine with the one before it.
    """
    begin = 0
    while len(text) - begin > max_characters:
        end = begin + max_characters
        cut = max(text.rfind(space, begin + 1, end + 1) for space in _SPACES)
        if cut >= 0:
            yield text[begin:cut]
            begin = cut + 1
            continue
        cut = end
        while cut > max(end - _LONGEST_CLUSTER, begin + 1) and _continues(text[cut]):
            cut -= 1
        yield text[begin:cut]
        begin = cut
    yield text[begin:]


def _continues(character: str) -> bool:
    """Whether the character belongs to the one before it."""
    return character == "\u200d" or unicodedata.category(character)[0] == "M" or "\udc00" <= character <= "\udfff"
