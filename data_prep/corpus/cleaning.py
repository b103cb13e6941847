"""Text -> the text that is tokenized: one Unicode form, one line end, and nothing invisible."""

import re
import unicodedata
from collections.abc import Iterator

from data_prep.contract.text.cleaning_rules import ANYTHING, REPLACEMENTS, WINDOWS_CONTROLS
from data_prep.contract.text.scripts import JOINERS

_SURROGATE = re.compile("[\ud800-\udfff]")
_WINDOWS = str.maketrans(WINDOWS_CONTROLS)
_REPLACEMENTS = tuple((re.compile(pattern), content) for pattern, content in REPLACEMENTS)

_PLAIN_ASCII = bytes([*b"\t\n", *range(0x20, 0x7F)])


def clean(text: str) -> str:
    """Text in NFC with \\n line ends, in which no word is joined to the next.

    Line ends become \\n. U+0080 to U+009F become what Windows-1252 has there. Other control characters, byte order
    marks, zero-width spaces, private-use characters and noncharacters become spaces, a row of them one. Soft
    hyphens, bidi marks and other format characters are removed. Joiners stay where they join: in scripts that have
    them, and between emoji. Halves of a surrogate pair become one character, or U+FFFD where the other half is missing.
    """
    # Only what is not plain ASCII is looked at closely: most text has little of it.
    rest = text.encode("utf-8", "surrogatepass").translate(None, _PLAIN_ASCII).decode("utf-8", "surrogatepass")
    if not rest:
        return text
    if ANYTHING.search(rest):
        if _SURROGATE.search(rest):
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        text = text.translate(_WINDOWS)
        for pattern, content in _REPLACEMENTS:
            text = pattern.sub(content, text)
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
    return character in JOINERS or unicodedata.category(character)[0] == "M" or "\udc00" <= character <= "\udfff"
