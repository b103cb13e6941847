"""Signs that are no words, and signs that end a sentence."""

import sys
import unicodedata

_ASCII_SYMBOLS = "$+<=>^`|~"

PUNCTUATION = frozenset(
    character
    for character in map(chr, range(sys.maxunicode + 1))
    if unicodedata.category(character)[0] == "P" or character in _ASCII_SYMBOLS
)
"""Unicode's punctuation and the symbols of ASCII."""

_TERMINAL_RANGES = (
    "21 2e 3f 589 61d-61f 6d4 700-702 7f9 837 839 83d-83e 964-965 104a-104b 1362 1367-1368 166e 1735-1736 17d4-17d5 "
    "1803 1809 1944-1945 1aa8-1aab 1b5a-1b5b 1b5e-1b5f 1b7d-1b7f 1c3b-1c3c 1c7e-1c7f 203c-203d 2047-2049 2e2e 2e3c "
    "2e53-2e54 3002 a4ff a60e-a60f a6f3 a6f7 a876-a877 a8ce-a8cf a92f a9c8-a9c9 aa5d-aa5f aaf0-aaf1 abeb fe52 "
    "fe56-fe57 ff01 ff0e ff1f ff61"
)


def _ranges(text: str) -> str:
    bounds = [[int(end, 16) for end in part.split("-")] for part in text.split()]
    return "".join(chr(code) for bound in bounds for code in range(bound[0], bound[-1] + 1))


TERMINAL = _ranges(_TERMINAL_RANGES)
"""What ends a sentence in the scripts of Unicode's first plane: its property Sentence_Terminal."""
