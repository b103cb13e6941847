""".warc -> documents: the text of every page that a server answered with, or that stands in the archive as a record.

Records of other types (requests, metadata, revisits) hold no page.
"""

from collections.abc import Iterator
from typing import Any

from data_prep.config import CleaningConfig
from data_prep.contract.shell.encodings import AUTO, codec_of
from data_prep.corpus.documents import CorpusFile, Document, Partition, Reject, sample
from data_prep.corpus.encodings.decoder import Decoder, decoder_for, stream_encoding
from data_prep.corpus.encodings.detection import HEAD_BYTES, legacy_encoding
from data_prep.corpus.formats.html_format import (
    HTML,
    PAGE_BYTES,
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
    except BaseException as error:
        yield Reject(id=document_id, reason="not_http", detail=problem_of(error), sample="")
        return
    yield from _page(document_id, body, kind, record.http_charset, file, cleaning)


def _page(
    document_id: str, body: bytes, kind: str, charset: str | None, file: CorpusFile, cleaning: CleaningConfig
) -> Iterator[Document | Reject]:
    """The documents of a page of the type ``kind``, whose server named its encoding ``charset``."""
    decoder = page_decoder(body, charset, file)
    found = decoder.read(body)
    if found is None:
        yield undecodable(document_id, body, decoder)
        return
    try:
        text = found.text if kind == _PLAIN else page_text(found.text)
    except BaseException as error:
        yield Reject(id=document_id, reason="not_html", detail=problem_of(error), sample=sample(body))
        return
    whole = decoder.named if file.encoding == AUTO and decoder.named != "utf-8" else None
    yield from with_facts(page_documents(document_id, text, body, cleaning), Facts(encoding=found.encoding or whole))


def page_decoder(body: bytes, charset: str | None, file: CorpusFile) -> Decoder:
    """How a page is decoded: as the configuration says; else as UTF-8, where it is that; else as it reads best.

    What its server or the page itself names weighs much, but does not decide: many a server names one encoding for all
    its pages.
    """
    if file.encoding != AUTO:
        return decoder_for(body, file.encoding, file.errors)
    head, replace = body[:HEAD_BYTES], file.errors == "replace"
    if (whole := stream_encoding(head, AUTO)) is not None:
        return Decoder(named=whole, replace=replace)
    declared = codec_of(charset or "")
    return Decoder(legacy=legacy_encoding(head, None if declared == "utf-8" else declared), replace=replace)


def _plain_record(
    document_id: str, record: Any, file: CorpusFile, cleaning: CleaningConfig
) -> Iterator[Document | Reject]:
    """A page without what a server says around it: of a resource record, or converted to text as in WET files."""
    kind, _, parameters = record.headers.get("Content-Type", _PLAIN).lower().partition(";")
    kind, charset = kind.strip(), parameters.partition("charset=")[2].partition(";")[0].strip(' "') or None
    if kind not in (*HTML, _PLAIN):
        yield _other_type(document_id, kind)
        return
    yield from _page(document_id, record.reader.read(), kind, charset, file, cleaning)


def _other_type(document_id: str, kind: str) -> Reject:
    detail = f"the content type is {kind[:200]}" if kind else "it has no content type"
    return Reject(
        id=document_id, reason="content_type", detail=sample(f"{detail}, neither HTML nor plain text"), sample=""
    )


class _Forward:
    """The part of a file object that FastWARC uses."""

    def __init__(self, stream: TextStream) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        return self._stream.read(size)

    def tell(self) -> int:
        return self._stream.position
