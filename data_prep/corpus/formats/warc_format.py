""".warc -> documents: the text of every page that a server answered with, or that stands in the archive as a record.

Records of other types (requests, metadata, revisits) hold no page.
"""

from collections.abc import Iterator
from typing import Any

from data_prep.config import CleaningConfig
from data_prep.contract.shell.encodings import AUTO, codec_of
from data_prep.corpus.documents import CorpusFile, Document, Partition, Reject, sample, whole_document
from data_prep.corpus.encodings.decoder import Decoder, decoder_for
from data_prep.corpus.formats.html_format import (
    HTML,
    PAGE_BYTES,
    likely_encoding,
    page_documents,
    page_text,
    problem_of,
)
from data_prep.corpus.formats.line_formats import undecodable
from data_prep.corpus.formats.text_fields import Facts, with_facts
from data_prep.corpus.streams import TextStream

_PLAIN = "text/plain"
_URL_CHARACTERS = 2_000


class WarcReader:
    """Documents of a .warc file, partition after partition."""

    def __init__(self, stream: TextStream, file: CorpusFile, cleaning: CleaningConfig) -> None:
        from fastwarc.warc import ArchiveIterator, WarcRecordType

        self.stream = stream
        self.file = file
        self.name = file.name
        self.cleaning = cleaning
        self.last_start = -1
        """Where the record that was read last begins."""
        forward: Any = _Forward(stream)
        self._records: Any = iter(
            ArchiveIterator(
                forward,
                record_types=WarcRecordType.response | WarcRecordType.resource | WarcRecordType.conversion,
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
        """The record that is read next, or None."""
        if self._next is None and not self._ended:
            try:
                self._next = next(self._records, None)
            except BaseException as error:
                self._problem = problem_of(error)
            self._ended = self._next is None
        return self._next

    def at_end(self) -> bool:
        """Whether no page follows."""
        return self._peek() is None

    def read(self, partition: Partition) -> Iterator[Document | Reject]:
        """The documents of the records that start in the partition."""
        while (record := self._peek()) is not None and record.stream_pos < partition.end:
            self._number += 1
            self.last_start = record.stream_pos
            if record.stream_pos >= partition.begin:
                items = self._documents(_record_id(f"{self.name}:{self._number}", record), record)
                yield from with_facts(items, Facts(url=_url(record) or None))
            self._next = None
        if record is None and self._problem is not None and partition.begin < self.stream.fetched <= partition.end:
            yield Reject(id=self.name, reason="damaged_file", detail=self._problem, sample="")

    def _documents(self, document_id: str, record: Any) -> Iterator[Document | Reject]:
        from fastwarc.warc import WarcRecordType

        if record.content_length > PAGE_BYTES:
            detail = f"more than {PAGE_BYTES} bytes"
            yield Reject(id=document_id, reason="record_too_long", detail=detail, sample="")
            return
        announced = record.content_length
        record.freeze()
        if record.content_length < announced:
            if self.stream.damage is None:  # else the damage has a reject of its own
                detail = f"the file ends inside the record of {announced} bytes"
                yield Reject(id=document_id, reason="damaged_file", detail=detail, sample="")
        elif record.record_type == WarcRecordType.response:
            yield from _answer(document_id, record, self.file, self.cleaning)
        else:
            yield from _plain_record(document_id, record, self.file, self.cleaning)


def _record_id(place: str, record: Any) -> str:
    """The place of a record, when it was fetched and from where."""
    parts = [place, record.headers.get("WARC-Date", ""), _url(record)]
    return " ".join(filter(None, parts)).encode("utf-8", "backslashreplace").decode()


def _url(record: Any) -> str:
    return record.headers.get("WARC-Target-URI", "").strip("<>")[:_URL_CHARACTERS]


def _answer(document_id: str, record: Any, file: CorpusFile, cleaning: CleaningConfig) -> Iterator[Document | Reject]:
    """What an HTTP server answered: a document where it is the page that was asked for."""
    try:
        record.parse_http(auto_decode="all")
        status = record.http_headers.status_code
    except BaseException as error:
        yield Reject(id=document_id, reason="not_http", detail=problem_of(error), sample="")
        return
    if status is None or not 200 <= status < 300:
        said = " ".join(str(record.http_headers.status_line).split()[1:])[:200] or "no status"
        target = record.http_headers.get("Location")
        detail = f"the server answered {said}" + (f", see {target[:_URL_CHARACTERS]}" if target else "")
        yield Reject(id=document_id, reason="http_status", detail=sample(detail), sample="")
        return
    kind = (record.http_content_type or "").lower()
    if kind not in (*HTML, _PLAIN):
        yield _other_type(document_id, kind)
        return
    try:
        body = record.reader.read()
        if file.encoding == AUTO:
            text = (_plain_text if kind == _PLAIN else page_text)(body, record.http_charset)
        else:
            text = _named_text(body, kind, file)
    except BaseException as error:
        yield Reject(id=document_id, reason="not_http", detail=problem_of(error), sample="")
        return
    if text is None:
        yield undecodable(document_id, body, decoder_for(body, file.encoding, file.errors))
    else:
        yield from page_documents(document_id, text, body, cleaning)


def _named_text(body: bytes, kind: str, file: CorpusFile) -> str | None:
    """The text of a page in the encoding that the configuration names, which is stronger than what the page says."""
    text = decoder_for(body, file.encoding, file.errors).text(body)
    return text if text is None or kind == _PLAIN else page_text(text.encode(), "utf-8")


def _plain_record(
    document_id: str, record: Any, file: CorpusFile, cleaning: CleaningConfig
) -> Iterator[Document | Reject]:
    """A page without what a server says around it: of a resource record, or converted to text as in WET files."""
    kind, _, parameters = record.headers.get("Content-Type", _PLAIN).lower().partition(";")
    kind, charset = kind.strip(), parameters.partition("charset=")[2].partition(";")[0].strip(' "') or None
    if kind not in (*HTML, _PLAIN):
        yield _other_type(document_id, kind)
        return
    body = record.reader.read()
    named = file.encoding != AUTO
    decoder = (
        decoder_for(body, file.encoding, file.errors)
        if named
        else Decoder(legacy=codec_of(charset) if charset else None, replace=file.errors == "replace")
    )
    plain = decoder.text(body) if named or kind == _PLAIN else ""
    if plain is None:
        yield undecodable(document_id, body, decoder)
    elif kind != _PLAIN:
        try:
            text = page_text(plain.encode(), "utf-8") if named else page_text(body, charset)
        except BaseException as error:
            yield Reject(id=document_id, reason="not_html", detail=problem_of(error), sample=sample(body))
            return
        yield from page_documents(document_id, text, body, cleaning)
    else:
        yield from whole_document(document_id, plain, cleaning)


def _other_type(document_id: str, kind: str) -> Reject:
    detail = f"the content type is {kind[:200]}" if kind else "it has no content type"
    return Reject(
        id=document_id, reason="content_type", detail=sample(f"{detail}, neither HTML nor plain text"), sample=""
    )


def _plain_text(body: bytes, charset: str | None) -> str:
    from resiliparse.parse.encoding import bytes_to_str

    return bytes_to_str(body, charset or likely_encoding(body))


class _Forward:
    """The part of a file object that FastWARC uses."""

    def __init__(self, stream: TextStream) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        return self._stream.read(size)

    def tell(self) -> int:
        return self._stream.position
