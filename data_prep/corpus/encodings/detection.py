"""Bytes of unknown encoding -> text, or the decision that they are damaged.

Nothing is guessed that would give wrong letters without a word: bytes that are neither UTF-8 nor clearly something
else are undecodable.
"""

import codecs
import re

HEAD_BYTES = 1 << 18
"""Beginning of a file that its encoding is judged by."""

_EVIDENCE_BYTES = 1 << 16
_LEAST_WIDE_BYTES = 16

# Candidates for the detection, all of them with ASCII as their lower half, so that lines can be told before decoding.
_LEGACY_ENCODINGS = [
    "cp1252", "cp1250", "cp1251", "koi8_r", "cp1253", "cp1254", "cp1255", "cp1256",
    "cp932", "euc_jp", "gb18030", "big5", "cp949",
]  # fmt: skip

_LATIN_ENCODINGS = ("cp1252", "cp1250", "cp1254")
_TYPOGRAPHY = frozenset("\xa0‘’‚“”„†‡•…–—‹›«»€£§©®°±²³·¼½¾×¡¿ªº™")
_NOT_WESTERN = frozenset("ðþýÐÞÝ")  # where Turkish and Icelandic code pages differ from each other

# In Latin text far more often half a UTF-8 character, or a damaged byte, than a letter.
_DAMAGE = re.compile(rb"[\xc2\xc3](?![A-Za-z\x80-\xff])|\xff|\xed[\xa0-\xbf][\x80-\xbf]")
_OTHER_SCRIPT = "\u0370-\u06ff"
_MIXED_WORD = re.compile(f"[A-Za-z][{_OTHER_SCRIPT}]|[{_OTHER_SCRIPT}][A-Za-z]")


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


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        codecs.getincrementaldecoder(encoding)("strict" if encoding == "utf-8" else "surrogatepass").decode(data)
    except UnicodeDecodeError:
        return False
    return True


def legacy_encoding(head: bytes) -> str | None:
    """The encoding of those lines of a file's beginning that are no UTF-8; None where all are, or none is known."""
    if _decodes(head, "utf-8"):
        return None
    lines = head.split(b"\n")
    if len(lines) > 1:
        lines.pop()  # may be cut in the middle of a character
    evidence = b"\n".join(line for line in lines if not _decodes(line, "utf-8") and not is_damaged_utf8(line))
    return _detect(evidence) if evidence else None


def decode(data: bytes, legacy: str | None) -> str | None:
    """The text in UTF-8, else in ``legacy``, else in an encoding detected from these bytes alone; None: undecodable."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        if 0 in data or is_damaged_utf8(data):
            return None
    encoding = legacy or _detect(data)
    if encoding is None or (encoding in _LATIN_ENCODINGS and (_DAMAGE.search(data) or is_damaged_utf8(data, 20))):
        return None
    try:
        return data.decode(encoding)
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


def _detect(data: bytes) -> str | None:
    """An encoding in which the bytes make sense."""
    first = re.search(rb"[\x80-\xff]", data)
    if first is None:
        return None
    begin = max(0, first.start() - _EVIDENCE_BYTES // 2)
    begin = data.rfind(b"\n", 0, begin) + 1 or begin  # not inside a character of two bytes, if possible
    evidence = data[begin : begin + _EVIDENCE_BYTES]
    if _is_western(evidence):
        return "cp1252"
    from charset_normalizer import from_bytes

    best = from_bytes(evidence, cp_isolation=_LEGACY_ENCODINGS).best()
    if best is None or best.encoding not in _LEGACY_ENCODINGS:
        return None
    text = evidence.decode(best.encoding, "ignore")
    words = len(re.findall(f"[{_OTHER_SCRIPT}]+", text))
    return None if len(_MIXED_WORD.findall(text)) * 10 > words else best.encoding


def _is_western(data: bytes) -> bool:
    """Whether it is Latin text of the kind that a detector needs a long stretch of: few accents, common signs."""
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        return False
    special = re.sub(r"[\x00-\x7f]+", "", text)
    letters = sum(map(str.isalpha, special))
    if not _TYPOGRAPHY.issuperset(c for c in special if not c.isalpha()) or not _NOT_WESTERN.isdisjoint(special):
        return False
    return letters <= 0.25 * sum(map(str.isalpha, text)) and not _DAMAGE.search(data) and not is_damaged_utf8(data, 20)
