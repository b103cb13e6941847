""".csv and .tsv -> documents, for any share of a file."""

import csv
import logging
from collections import deque
from collections.abc import Iterator

from data_prep.config import CleaningConfig, CorpusConfig, as_tuple
from data_prep.corpus.documents import CorpusFile, Document, Kind, Partition, Reject, sample
from data_prep.corpus.encodings.detection import HEAD_BYTES
from data_prep.corpus.formats.csv_dialects import Dialect, dialect_of, header_names
from data_prep.corpus.formats.line_formats import LINE_BYTES, decoded
from data_prep.corpus.formats.text_fields import (
    BETWEEN_FIELDS,
    fact_fields,
    facts_of,
    no_text_field,
    with_facts,
)
from data_prep.corpus.streams import BLOCK_BYTES, DamagedFile, TextStream

RECORD_LINES = 1 << 17
"""A record that has more lines has a quote that is never closed."""

_BEHIND_ALL = 1 << 62
_LOG = logging.getLogger(__name__)

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_Line = tuple[int, int, bytes]  # where it starts, its number, itself


class CsvRecords:
    """The records of a .csv or .tsv file, with their places."""

    def __init__(self, stream: TextStream, file: CorpusFile, config: CorpusConfig) -> None:
        csv.field_size_limit(LINE_BYTES)
        self.stream = stream
        self.last_start = -1
        """Where the record that was read last begins."""
        self.cut = False
        """Whether the file is damaged inside a record."""
        self._name = file.name
        self._record: list[_Line] = []
        self._size = 0
        self._ahead: deque[_Line] = deque()
        self._dialect = self._find_dialect(file.kind, config)
        self._parser = self._new_parser()
        self._warns = file.kind == "tsv" and config.csv_quoting is None

    def _find_dialect(self, kind: Kind, config: CorpusConfig) -> Dialect:
        """By the lines of the beginning, which stay ahead."""
        lines: list[_Line] = []
        size = 0
        while size < HEAD_BYTES and (line := self._next_line()) is not None:
            lines.append(line)
            size += len(line[2])
        self._ahead.extend(lines)
        return dialect_of([line for *_, line in lines], kind, config, whole=size < HEAD_BYTES)

    def _new_parser(self) -> Iterator[list[str]]:
        delimiter = self._dialect.delimiter
        if not self._dialect.quoted:
            return (line.rstrip("\r\n").split(delimiter) for line in self._feed())
        # Strict: a stray quote at the beginning of a field would otherwise join it with the lines behind it.
        return csv.reader(self._feed(), delimiter=delimiter, strict=True)

    def _feed(self) -> Iterator[str]:
        while (line := self._next_line()) is not None:
            self._record.append(line)
            self._size += len(line[2])
            if self._size >= LINE_BYTES or len(self._record) > RECORD_LINES:
                raise csv.Error(f"a record of more than {LINE_BYTES} bytes or {RECORD_LINES} lines")
            # Bytes that are no UTF-8 come back as they were when the field is encoded again.
            yield line[2].decode("utf-8", "surrogateescape")

    def _next_line(self) -> _Line | None:
        if self._ahead:
            return self._ahead.popleft()
        start, number = self.stream.position, self.stream.number
        line = self.stream.read_line(LINE_BYTES)
        if start == 0 and line != _BYTE_ORDER_MARK:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        return (start, number, line) if line else None

    @property
    def position(self) -> int:
        """Where the next record starts."""
        return self._ahead[0][0] if self._ahead else self.stream.position

    def records(self, end: int) -> Iterator[tuple[_Line, list[bytes] | Exception]]:
        """(first line, fields or what is wrong with it) of the records that start before ``end``."""
        while self.position < end and not self.cut:
            self._record, self._size = [], 0
            problem: Exception | None = None
            fields: list[str] = []
            try:
                fields = next(self._parser, [])
            except csv.Error as error:
                problem = error
            if not self._record:
                return
            first = self._record[0]
            self.last_start = first[0]
            damage = self.stream.damage
            if damage and self.stream.at_end() and not self._ahead and (problem or self.stream.inside_line):
                self.cut = True
                problem = damage
            elif problem is not None:
                self._retry_behind(first)
            elif self._warns and len(self._record) > 1:
                self._warns = False
                _LOG.warning(
                    "corpus file %s: quotes join its lines %d to %d into one record; if quotes are text in it, give "
                    "--corpus.csv_quoting none, else minimal",
                    self._name, first[1], self._record[-1][1],
                )  # fmt: skip
            if problem is not None:
                yield first, problem
            elif first[2].strip(b"\r\n"):
                yield first, [field.encode("utf-8", "surrogateescape") for field in fields]

    def _retry_behind(self, first: _Line) -> None:
        """Give up one line, not all that an open quote swallowed."""
        self._ahead.extendleft(reversed(self._record[1:]))
        if not first[2].endswith(b"\n") and not self._ahead:
            self.stream.skip_line()
        self._parser = self._new_parser()


class CsvReader:
    """Documents of a .csv or .tsv file, partition after partition."""

    def __init__(self, stream: TextStream, file: CorpusFile, config: CorpusConfig, cleaning: CleaningConfig) -> None:
        self.stream = stream
        self.records = CsvRecords(stream, file, config)
        self.name = file.name
        self.config = config
        self.cleaning = cleaning
        self.header: list[str] | None = None
        self.columns: list[int] = []

    @property
    def last_start(self) -> int:
        """Where the record that was read last begins."""
        return self.records.last_start

    def read(self, partition: Partition) -> Iterator[Document | Reject]:
        """The documents of the records that start in the partition."""
        if self.header is None:
            yield from (item for item in self._read_header() if partition.begin == 0)
        if not self.columns:
            return
        for _ in self.records.records(partition.begin):
            continue
        for (_, number, line), fields in self.records.records(partition.end):
            yield from self._items(f"{self.name}:{number}", line, fields)

    def _read_header(self) -> Iterator[Reject]:
        self.header = []
        first, fields = next(self.records.records(_BEHIND_ALL), (None, None))
        if first is None or fields is None:
            return
        if isinstance(fields, Exception):
            yield _no_csv(f"{self.name}:{first[1]}", first[2], fields)
            return
        self.header = header_names([self.stream.decoder.text(field) or "" for field in fields])
        names = as_tuple(self.config.text_field)
        missing = next((name for name in names if name not in self.header), None)
        if missing is None:
            self.columns = [self.header.index(name) for name in names]
        else:
            yield no_text_field(self.name, missing, dict.fromkeys(self.header), ",".join(self.header))

    def _items(self, document_id: str, line: bytes, fields: list[bytes] | Exception) -> Iterator[Document | Reject]:
        if isinstance(fields, Exception):
            yield _no_csv(document_id, line, fields)
        elif len(fields) <= max(self.columns):
            detail = f"{len(fields)} fields instead of {len(self.header or ())}"
            yield Reject(id=document_id, reason="no_text_field", detail=detail, sample=sample(line))
        else:
            texts = [fields[column] for column in self.columns]
            text = texts[0] if len(texts) == 1 else BETWEEN_FIELDS.encode().join(filter(None, texts))
            header = self.header or []
            places = [header.index(name) if name in header else len(fields) for name in fact_fields(self.config)]
            facts = facts_of(*(fields[place] if place < len(fields) else None for place in places))
            yield from with_facts(decoded(document_id, text, self.records.stream.decoder, self.cleaning), facts)


def _no_csv(document_id: str, line: bytes, problem: Exception) -> Reject:
    reason = "damaged_file" if isinstance(problem, DamagedFile) else "not_csv"
    return Reject(id=document_id, reason=reason, detail=str(problem), sample=sample(line[:BLOCK_BYTES]))


def holds_no_record(stream: TextStream, file: CorpusFile, config: CorpusConfig) -> bool:
    """Whether there is nothing but, at most, a header."""
    records = CsvRecords(stream, file, config).records(_BEHIND_ALL)
    next(records, None)
    return next(records, None) is None
