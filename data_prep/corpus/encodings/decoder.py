"""Bytes of one file -> text, or why there is none."""

import codecs
import dataclasses
from collections.abc import Iterator

from data_prep.contract.shell.encodings import AUTO, holds_ascii
from data_prep.corpus.encodings.detection import Decoded, decode, is_damaged_utf8, legacy_encoding, whole_encoding

_BYTE_ORDER_MARKS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
)

FEW_BAD_BYTES = 50
"""Of at least so many bytes one may be none of UTF-8, where bad bytes are replaced and nothing else fits."""

_MARK = "\udcff"
"""In place of bytes that cannot be decoded: it has no UTF-8, so the text that it stands in is rejected."""

_MARKED = "narrowbert.marked"
codecs.register_error(_MARKED, lambda error: (_MARK, getattr(error, "end", 0)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoder:
    """How the bytes of one file are read."""

    named: str | None = None
    """The encoding of all of them; None where it has to be found out."""
    legacy: str | None = None
    """What is no UTF-8 is in this encoding, if that is known; only where none is ``named``."""
    found: str | None = None
    """The encoding that the whole file was found to be in, where that is not UTF-8."""
    replace: bool = False
    """Whether what cannot be decoded costs its bytes, each run of them one U+FFFD, and not its text."""

    def text(self, data: bytes) -> str | None:
        """The text; None where the bytes are in no known encoding, or damaged."""
        found = self.read(data)
        return None if found is None else found.text

    def read(self, data: bytes) -> Decoded | None:
        """The text, with its encoding where that is not what the file is in; None as ``text``."""
        if self.named is not None:
            text = self._decoded(data, self.named)
            return None if text is None else Decoded(text, None)
        found = decode(data, self.legacy)
        if found is None and self.replace and (text := self._mended(data)) is not None:
            return Decoded(text, None)
        return found._replace(encoding=None) if found is not None and found.encoding == self.found else found

    def _decoded(self, data: bytes, encoding: str) -> str | None:
        try:
            return data.decode(encoding, "replace" if self.replace else "strict")
        except UnicodeDecodeError:
            return None

    def _mended(self, data: bytes) -> str | None:
        """The text of bytes that are damaged."""
        text = data.decode("utf-8", "replace")
        if is_damaged_utf8(data) or FEW_BAD_BYTES * text.count("\ufffd") <= len(data):
            return text
        return None if self.legacy is None else self._decoded(data, self.legacy)

    def problem(self, data: bytes) -> str:
        """Why the bytes have no ``text``."""
        encoding = self.named or "utf-8"
        shown = "UTF-8" if encoding == "utf-8" else encoding
        others = "" if self.named else ", and in no other known encoding"
        try:
            data.decode(encoding)
        except UnicodeDecodeError as error:
            return f"no {shown} from byte {error.start} on ({error.reason}){others}"
        return "in no known encoding"


def stream_encoding(head: bytes, encoding: str) -> str | None:
    """The encoding in which lines can be told only when the whole file is decoded; None where they are bytes.

    Args:
        head: the file's beginning. A byte order mark in it is stronger than any name.
        encoding: ``AUTO``, or a name as ``codec_of`` gives it.
    """
    marked = _marked(head)
    if marked is not None:
        return None if marked == "utf-8" else marked
    if encoding == AUTO:
        return whole_encoding(head)
    return None if holds_ascii(encoding) else encoding


def _marked(head: bytes) -> str | None:
    return next((encoding for mark, encoding in _BYTE_ORDER_MARKS if head.startswith(mark)), None)


def decoder_for(head: bytes, encoding: str, errors: str) -> Decoder:
    """The decoder of a file whose lines are bytes, by its beginning; arguments as those of ``stream_encoding``."""
    replace = errors == "replace"
    if encoding == AUTO:
        legacy = legacy_encoding(head)
        return Decoder(legacy=legacy, found=legacy, replace=replace)
    return Decoder(named=_marked(head) or encoding, replace=replace)


def as_utf8(blocks: Iterator[bytes], encoding: str, errors: str) -> Iterator[bytes]:
    """A whole file as UTF-8. What cannot be decoded becomes U+FFFD, or bytes that no UTF-8 has.

    Raises:
        UnicodeDecodeError: the file ends inside a character, and bad bytes are not replaced.
    """
    decoder = codecs.getincrementaldecoder(encoding)("replace" if errors == "replace" else _MARKED)
    for block in blocks:
        yield decoder.decode(block).encode("utf-8", "surrogatepass")
    if errors == "strict":
        decoder.errors = "strict"
    yield decoder.decode(b"", True).encode("utf-8", "surrogatepass")
