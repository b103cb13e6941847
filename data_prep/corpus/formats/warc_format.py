""".warc -> documents: the text of every HTML or plain-text response."""

from collections.abc import Iterator
from typing import Any

from data_prep.config import CleaningConfig
from data_prep.contract.command_line import UserError
from data_prep.corpus.documents import CorpusFile, Document, Partition, Reject, sample, whole_document
from data_prep.corpus.streams import TextStream

RECORD_BYTES = 1 << 25
"""A longer response is rejected."""

_HTML = ("text/html", "application/xhtml+xml")


def require_warc() -> None:
    """Raise UserError where the extra is not installed."""
    try:
        import fastwarc.warc  # noqa: F401
        import resiliparse.extract.html2text  # noqa: F401
    except ImportError as error:
        raise UserError("reading .warc files needs another package: pip install 'narrowbert[warc]'") from error


class WarcReader:
    """Documents of a .warc file, partition after partition."""

    def __init__(self, stream: TextStream, file: CorpusFile, cleaning: CleaningConfig) -> None:
        from fastwarc.warc import ArchiveIterator, WarcRecordType

        self.stream = stream
        self.name = file.name
        self.cleaning = cleaning
        self.last_start = -1
        """Where the response that was read last begins."""
        forward: Any = _Forward(stream)
        self._responses: Any = iter(
            ArchiveIterator(
                forward,
                record_types=WarcRecordType.response,
                parse_http=False,
                stream_detect=False,
                quirks_mode=True,
            )
        )
        self._number = 0
        self._next: Any = None
        self._ended = False
        self._problem: str | None = None

    def _peek(self) -> Any:
        """The response that is read next, or None."""
        if self._next is None and not self._ended:
            try:
                self._next = next(self._responses, None)
            except BaseException as error:
                self._problem = _problem(error)
            self._ended = self._next is None
        return self._next

    def at_end(self) -> bool:
        """Whether no response follows."""
        return self._peek() is None

    def read(self, partition: Partition) -> Iterator[Document | Reject]:
        """The documents of the responses that start in the partition."""
        while (record := self._peek()) is not None and record.stream_pos < partition.end:
            self._number += 1
            self.last_start = record.stream_pos
            if record.stream_pos >= partition.begin:
                yield from self._documents(f"{self.name}:{self._number}", record)
            self._next = None
        if record is None and self._problem is not None and partition.begin < self.stream.fetched <= partition.end:
            yield Reject(id=self.name, reason="damaged_file", detail=self._problem, sample="")

    def _documents(self, document_id: str, record: Any) -> Iterator[Document | Reject]:
        if record.content_length > RECORD_BYTES:
            detail = f"more than {RECORD_BYTES} bytes"
            yield Reject(id=document_id, reason="record_too_long", detail=detail, sample=sample(str(record.record_id)))
            return
        try:
            text = _response_text(record)
        except BaseException as error:
            yield Reject(id=document_id, reason="not_http", detail=_problem(error), sample="")
            return
        if self.stream.damage is not None and self.stream.fetched < record.stream_pos + record.content_length:
            return  # cut by the damage, which has a reject of its own
        if text is not None:
            yield from whole_document(document_id, text, self.cleaning)


def _problem(error: BaseException) -> str:
    """What the parsers say of anything that servers send; other errors are raised on."""
    # A panic of theirs is no Exception.
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


class _Forward:
    """The part of a file object that FastWARC uses."""

    def __init__(self, stream: TextStream) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        return self._stream.read(size)

    def tell(self) -> int:
        return self._stream.position


def _response_text(record: Any) -> str | None:
    """The text of a response; None where it is neither HTML nor plain text."""
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding
    from resiliparse.parse.html import HTMLTree

    record.parse_http(auto_decode="all")
    kind = (record.http_content_type or "").lower()
    if kind not in (*_HTML, "text/plain"):
        return None
    body = record.reader.read()
    encoding = record.http_charset or detect_encoding(body) or "utf-8"
    if kind == "text/plain":
        return bytes_to_str(body, encoding)
    return extract_plain_text(HTMLTree.parse_from_bytes(body, encoding), main_content=True, alt_texts=False)
