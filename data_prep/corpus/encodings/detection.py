"""Bytes of unknown encoding -> text, or the decision that they are damaged.

Nothing is guessed that would give wrong letters without a word: bytes that are neither UTF-8 nor clearly something
else are undecodable.
"""

import codecs
import re
import unicodedata
from typing import NamedTuple

from data_prep.corpus.encodings.seven_bit import may_be_seven_bit, seven_bit_encoding

HEAD_BYTES = 1 << 18
"""Beginning of a file that its encoding is judged by."""

_EVIDENCE_BYTES = 1 << 16
_LEAST_WIDE_BYTES = 16
_WIDE_BYTES = 12_000
_LEAST_WIDE_MEAN = -8.5  # nats of an ideograph

_DAMAGED_AS = ("cp1252", "cp1254")
"""Where a damaged UTF-8 character is a likelier cause of some bytes than a letter."""

_HALVES = re.compile(rb"\xed[\xa0-\xaf][\x80-\xbf]\xed[\xb0-\xbf][\x80-\xbf]")
_NOT_ASCII = re.compile(rb"[\x80-\xff]")

# In Latin text far more often half a UTF-8 character, or a damaged byte, than a letter.
_DAMAGE = re.compile(rb"[\xc2\xc3](?![A-Za-z\x80-\xff])|\xff|\xed[\xa0-\xbf][\x80-\xbf]")


def unmarked_wide_encoding(head: bytes) -> str | None:
    """The UTF-16 or UTF-32 that a file without a byte order mark begins in, by where its zero bytes are."""
    if head.count(0) * 20 < len(head) or len(head) < _LEAST_WIDE_BYTES:
        return None
    whole = head[: len(head) // 4 * 4]
    lanes = [whole[i::4].count(0) / (len(whole) // 4) for i in range(4)]
    candidates = {
        "utf-32-le": min(lanes[2:]) > 0.9 and lanes[0] < 0.1,
        "utf-32-be": min(lanes[:2]) > 0.9 and lanes[3] < 0.1,
        "utf-16-le": min(lanes[1], lanes[3]) > 0.1 and max(lanes[0], lanes[2]) < 0.02,
        "utf-16-be": min(lanes[0], lanes[2]) > 0.1 and max(lanes[1], lanes[3]) < 0.02,
    }
    for encoding, fits in candidates.items():
        if fits and _decodes(whole, encoding):
            return encoding
    return None


def wide_ideographs(head: bytes) -> str | None:
    """The UTF-16 of Chinese, Japanese or Korean, which has hardly any zero byte, of a file's beginning."""
    from data_prep.corpus.encodings.letters import read

    whole = head[: min(len(head), _WIDE_BYTES) // 2 * 2]
    for encoding in ("utf-16-le", "utf-16-be") if len(whole) >= _LEAST_WIDE_BYTES else ():
        if _decodes(whole, encoding):
            reading = read(unicodedata.normalize("NFC", whole.decode(encoding, "ignore")))
            if reading.ideographs and reading.mean > _LEAST_WIDE_MEAN:
                return encoding
    return None


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        codecs.getincrementaldecoder(encoding)("strict" if encoding == "utf-8" else "surrogatepass").decode(data)
    except UnicodeDecodeError:
        return False
    return True


def whole_encoding(head: bytes) -> str | None:
    """The encoding, found out, of a file that has to be decoded as a whole; None of one whose lines are bytes."""
    if head.isascii() and 0 not in head:
        return seven_bit_encoding(head[: head.rfind(b"\n") + 1] if len(head) >= HEAD_BYTES else head)
    wide = unmarked_wide_encoding(head)
    return wide if wide is not None or _decodes(head, "utf-8") else wide_ideographs(head)


def legacy_encoding(head: bytes, declared: str | None = None) -> str | None:
    """The encoding of those lines of a file's beginning that are no UTF-8; None where all are, or none is known.

    Args:
        head: the beginning.
        declared: the codec that a server names; it may be wrong, as may what the head itself declares.
    """
    if _decodes(head, "utf-8"):
        return None
    lines = head.split(b"\n")
    if len(lines) > 1 and len(head) >= HEAD_BYTES:
        lines.pop()  # may be cut in the middle of a character
    evidence = b"\n".join(line for line in lines if not _decodes(line, "utf-8") and not is_damaged_utf8(line))
    return _detect(evidence, head, declared) if evidence else None


class Decoded(NamedTuple):
    """A text, and what its bytes were in."""

    text: str
    encoding: str | None
    """None for UTF-8."""


def decode(data: bytes, legacy: str | None) -> Decoded | None:
    """The text in UTF-8, else in ``legacy``, else in an encoding detected from these bytes alone; None: undecodable."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        surrogates = cesu_8(data)
        if surrogates is not None or 0 in data or is_damaged_utf8(data):
            return None if surrogates is None else Decoded(surrogates, "cesu-8")
    else:
        return _seven_bit_text(data, text) if may_be_seven_bit(data) else Decoded(text, None)
    encoding = legacy or _detect(data)
    if encoding is None or (encoding in _DAMAGED_AS and (_DAMAGE.search(data) or is_damaged_utf8(data, 20))):
        return None
    try:
        return Decoded(data.decode(encoding), encoding)
    except UnicodeDecodeError:
        return None


def _seven_bit_text(data: bytes, text: str) -> Decoded | None:
    """The text of bytes that are UTF-8 and may be meant as something else; None where they cannot be meant as text."""
    codec = seven_bit_encoding(data, utf_7=False)
    if codec is not None:
        return Decoded(data.decode(codec), codec)
    return None if b"\x1b$" in data else Decoded(text, None)


def cesu_8(data: bytes) -> str | None:
    """The text of UTF-8 whose characters beyond U+FFFF are two halves of three bytes each, or None."""
    if not _HALVES.search(data):
        return None
    try:
        return data.decode("utf-8", "surrogatepass").encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        return None


def is_damaged_utf8(data: bytes, bad_bytes: int = 1) -> bool:
    """Whether there is a UTF-8 character for each so many bytes that are none.

    Text in Asian encodings holds one for three or more by chance, Latin text in its encodings hardly any.
    """
    text = data.decode("utf-8", "replace")
    bad = text.count("\ufffd")
    good = len(text) - len(text.encode("ascii", "ignore")) - bad
    return good > 0 and bad <= bad_bytes * good


def _detect(data: bytes, head: bytes = b"", declared: str | None = None) -> str | None:
    """An encoding in which the bytes make sense; ``head`` may declare one where none is."""
    from data_prep.corpus.encodings.code_pages import code_page, declared_encoding

    first = _NOT_ASCII.search(data)
    if first is None:
        return None
    begin = max(0, first.start() - _EVIDENCE_BYTES // 2)
    begin = data.rfind(b"\n", 0, begin) + 1 or begin  # not inside a character of two bytes, if possible
    return code_page(data[begin : begin + _EVIDENCE_BYTES], declared or declared_encoding(head))
