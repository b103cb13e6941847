"""What is replaced in every text, in the corpus and in the normaliser of a tokenizer trained here.

Tokenizers drop control and format characters and so join the words on both sides of them. Here each of these
characters is either a space (it stood between words) or nothing (it stood inside one). The patterns mean the same to
``re`` and to the library ``tokenizers``.
"""

import re

from data_prep.contract.text.scripts import JOINERS

WINDOWS_CONTROLS = {
    chr(code): bytes([code]).decode("cp1252")
    for code in range(0x80, 0xA0)
    if code not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)
}
"""Control characters U+0080 to U+009F -> what Windows-1252 has there: text that was once read as Latin-1, such as
"don\\x92t". HTML reads them so too (its standard, "numeric character reference end state")."""

LINE_ENDS = "\r\n|[\r\u2028\u2029]"
"""What becomes \\n."""

# Soft hyphen, bidi marks, embeddings and isolates, invisible operators, tags.
_INSIDE_WORDS = "\xad\u061c\u200e\u200f\u202a-\u202e\u2060-\u206f\U000e0000-\U000e007f"

# Controls, zero-width spaces, private use and noncharacters, which tokenizers drop as well.
_BETWEEN_WORDS = (
    "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u180e\u200b\ue000-\uf8ff\ufdd0-\ufdef\ufeff\ufff9-\ufffb"
    "\ufffe\uffff\U000f0000-\U0010ffff"
)

# Letters and marks whose form a joiner can choose, and symbols, of which it makes one emoji. Latin, Greek and Cyrillic
# letters have no such forms: a joiner between them is waste, as newsletters have it.
_BEFORE_JOINER = (
    "\u0338\u0590-\u061b\u061d-\u180d\u180f-\u1dff\u20d0-\u20ff\u2190-\u2bff\u2c80-\u2dff\u2e80-\u2fff\u3001-\ua63f"
    "\ua6a0-\ua71f\ua800-\uab2f\uab70-\ud7ff\uf900-\ufaff\ufb07-\ufdcf\ufdf0-\ufe0f\ufe20-\ufe2f\ufe70-\ufefe"
    "\U00010000-\U0003ffff\U000e0100-\U000e01ef"
)

NOTHING = f"[{_INSIDE_WORDS}]+|(?<=[{JOINERS}])[{JOINERS}]+|(?<![{_BEFORE_JOINER}])\u200d"
"""What is removed: format characters, and joiners that join nothing."""

BLANK = f"[{_BETWEEN_WORDS}]+|(?<![{_BEFORE_JOINER}])\u200c"
"""What becomes a space."""

REPLACEMENTS = ((LINE_ENDS, "\n"), (NOTHING, ""), (BLANK, " "))
"""In this order, after ``WINDOWS_CONTROLS``."""

ANYTHING = re.compile(
    f"[{''.join(WINDOWS_CONTROLS)}\r\u2028\u2029{_INSIDE_WORDS}{_BETWEEN_WORDS}{JOINERS}\ud800-\udfff]"
)
"""A character that may need any of this, or half a surrogate pair."""
