"""Encodings that have ASCII bytes only: escape sequences of ISO-2022, tildes of HZ, plus signs of UTF-7."""

import re
import unicodedata

_ISO_2022 = re.compile(rb"\x1b(?:\$[@AB]|\$\([A-DO-Q]|\([IJ]|\$\)C)")
_ISO_2022_CODECS = ("iso2022_jp", "iso2022_jp_ext", "iso2022_jp_2", "iso2022_jp_2004", "iso2022_kr")
_HZ = re.compile(rb"~\{((?:[!-~]{2})+?)~\}")
_UTF_7 = re.compile(rb"\+([A-Za-z0-9+/]{3,})(?![A-Za-z0-9+/])")
_LEAST_CHARACTERS = 3
_LEAST_MEANS = (-5.5, -9.0)  # nats of a letter, of an ideograph


def may_be_seven_bit(data: bytes) -> bool:
    """Whether a look is worth while; it costs little."""
    return b"\x1b$" in data or b"\x1b(" in data or b"~{" in data


def seven_bit_encoding(data: bytes, *, utf_7: bool = True) -> str | None:
    """The codec of ASCII bytes that stand for other characters, or None where they are ASCII.

    Args:
        data: bytes from the beginning of a text on.
        utf_7: whether it may be UTF-7, whose plus signs other texts have too.
    """
    if _ISO_2022.search(data):
        return next((codec for codec in _ISO_2022_CODECS if _reads(data, codec)), None)
    if _HZ.search(data) and _reads(data, "hz"):
        return "hz"
    if utf_7 and _UTF_7.search(data) and _reads(data, "utf_7"):
        return "utf_7"
    return None


def _reads(data: bytes, codec: str) -> bool:
    """Whether it decodes to text that reads well."""
    from data_prep.corpus.encodings.letters import read

    try:
        text = data.decode(codec)
    except (UnicodeDecodeError, ValueError):
        return False
    rare = [character for character in text if character > "\x7f"]
    if len(rare) < _LEAST_CHARACTERS or any(unicodedata.category(character)[0] == "C" for character in rare):
        return False
    reading = read(unicodedata.normalize("NFC", text[:20_000]))
    return reading.mean >= _LEAST_MEANS[reading.ideographs]
