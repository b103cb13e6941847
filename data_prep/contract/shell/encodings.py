"""Which encodings a configuration may name, and what they are to Python."""

import codecs

AUTO = "auto"
"""Each file's encoding is found out."""

_ASCII = bytes(range(128))

# As the WHATWG Encoding Standard has it: who names the smaller set means the larger one.
_LARGER_SETS = {
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "utf-8-sig": "utf-8",
    "ascii": "utf-8",
}

# Codecs of Python that are no encodings of text files.
_NO_FILES = {"idna", "punycode", "raw-unicode-escape", "unicode-escape", "undefined", "mbcs", "oem"}


def codec_of(name: str) -> str | None:
    """Python's name of an encoding, or of the larger set that includes it; None for a name that is none."""
    try:
        info = codecs.lookup(name)
    except (LookupError, ValueError):
        return None
    if info.name in _NO_FILES or not info._is_text_encoding:  # pyright: ignore[reportAttributeAccessIssue]
        return None
    return _LARGER_SETS.get(info.name, info.name)


def holds_ascii(codec: str) -> bool:
    """Whether ASCII is in it as it is, and means nothing else: lines can then be told before they are decoded."""
    if codec.startswith("iso2022"):  # ASCII until an escape sequence says otherwise
        return False
    try:
        return _ASCII.decode(codec) == _ASCII.decode("ascii")
    except UnicodeDecodeError:
        return False
