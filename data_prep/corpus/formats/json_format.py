""".json -> documents: the elements of one array, or JSON values one behind the other."""

import codecs
import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

from data_prep.config import CleaningConfig, CorpusConfig
from data_prep.corpus.documents import CorpusFile, Document, Partition, Reject, sample
from data_prep.corpus.formats import line_formats
from data_prep.corpus.formats.line_formats import parsed_documents, undecodable
from data_prep.corpus.streams import BLOCK_BYTES, TextStream

_BLANK = re.compile(r"[ \t\r\n]*")
_BETWEEN = re.compile(r"[ \t\r\n,]*")
_NO_UTF8 = re.compile("[\udc80-\udcff]")
_STRUCTURE = re.compile(r'["\\{}\[\],\n]')
_NEAR_END = 16
"""Characters that the end of a half-read number, literal or escape may take up."""


@dataclasses.dataclass(frozen=True)
class _Record:
    """One value of the file, or what is wrong at its place."""

    start: int
    """Its first byte in the stream."""
    number: int
    """From 1."""
    content: str
    """As it stands in the file; of one that is no JSON its beginning. Bytes that are no UTF-8 are surrogates."""
    value: Any = None
    problem: tuple[str, str] | None = None
    """Reason and detail of its reject."""


class JsonReader:
    """Documents of a .json file, partition after partition. Memory is bounded by the longest record."""

    def __init__(self, stream: TextStream, file: CorpusFile, config: CorpusConfig, cleaning: CleaningConfig) -> None:
        self.stream = stream
        self.name = file.name
        self.config = config
        self.cleaning = cleaning
        self.last_start = -1
        """Where the record that was read last begins."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._buffer = ""
        self._at = 0
        """Character of the buffer that is read next."""
        self._position = 0
        """Its byte in the stream."""
        self._ended = False
        """Whether the buffer holds all that is left."""
        self._lines = False
        """Whether each record stands in a line, as far as is known."""
        self._records = self._all_records()
        self._next = next(self._records, None)

    def at_end(self) -> bool:
        """Whether no record follows."""
        return self._next is None

    def read(self, partition: Partition) -> Iterator[Document | Reject]:
        """The documents of the records that start in the partition."""
        while (record := self._next) is not None and record.start < partition.end:
            self.last_start = max(record.start, 0)
            if self.last_start >= partition.begin:
                yield from self._items(f"{self.name}:{record.number}", record)
            self._next = next(self._records, None)

    def _items(self, document_id: str, record: _Record) -> Iterator[Document | Reject]:
        content = record.content
        if record.problem is not None:
            reason, detail = record.problem
            yield Reject(id=document_id, reason=reason, detail=detail, sample=sample(content[:BLOCK_BYTES]))
            return
        value, encoding = record.value, None
        decoder = self.stream.decoder
        if _NO_UTF8.search(content) or decoder.named not in (None, "utf-8"):
            data = content.encode("utf-8", "surrogateescape")
            found = decoder.read(data)
            if found is None:
                yield undecodable(document_id, data, decoder)
                return
            encoding = found.encoding
            try:
                value = json.loads(found.text)
            except (ValueError, RecursionError) as error:
                yield Reject(id=document_id, reason="not_json", detail=str(error), sample=sample(found.text))
                return
        yield from parsed_documents(document_id, value, content, self.config, self.cleaning, encoding)

    def _all_records(self) -> Iterator[_Record]:
        self._fill(1)
        if self._buffer.startswith("\ufeff"):
            self._go_to(1)
        self._skip(_BLANK)
        in_array = self._buffer.startswith("[", self._at)
        if in_array:
            self._go_to(self._at + 1)
        number = 0
        while self._skip(_BETWEEN):
            if in_array and self._buffer[self._at] == "]":
                self._go_to(self._at + 1)
                in_array = False
                if self._skip(_BLANK):
                    yield self._last(number + 1, ("not_json", "more stands behind the end of the array"))
                    return
                break
            number += 1
            record = self._record(number, in_array)
            yield record
            cut = self._ended and self._at == len(self._buffer)
            if record.problem and cut and (self.stream.damage is None or record.problem[0] == "damaged_file"):
                return
        if self.stream.damage is not None:
            yield self._last(number + 1, ("damaged_file", str(self.stream.damage)))
        elif in_array:
            yield self._last(number + 1, ("not_json", "the file ends before its array does"))

    def _last(self, number: int, problem: tuple[str, str]) -> _Record:
        """What is wrong with the end of the file; it belongs to the last partition."""
        content = self._buffer[self._at : self._at + BLOCK_BYTES]
        return _Record(min(self._position, self.stream.fetched - 1), number, content, problem=problem)

    def _record(self, number: int, in_array: bool) -> _Record:
        """The record that begins where reading is; reading goes on behind it."""
        while True:
            start, at = self._position, self._at
            try:
                value, end = json.JSONDecoder().raw_decode(self._buffer, at)
            except (ValueError, RecursionError) as error:
                behind = getattr(error, "pos", -1) - at
                problem = self._problem(error, behind)
                if problem is None:
                    continue
                content = self._buffer[self._at : self._at + BLOCK_BYTES]
                self._pass_over(self._is_line(behind, in_array))
                return _Record(start, number, content, problem=problem)
            if end == len(self._buffer) and self._buffer[end - 1] not in '}]"' and self._fill(2 * (end - at)):
                continue  # a number may go on
            content = self._buffer[at:end]
            self._go_to(end)
            self._lines = self._lines or (not in_array and "\n" not in content)
            return _Record(start, number, content, value=value)

    def _problem(self, error: ValueError | RecursionError, behind: int) -> tuple[str, str] | None:
        """What is wrong with a record that was not understood so many characters behind its beginning; None where it is
        so no more, as more was read."""
        size = len(self._buffer) - self._at
        cut = str(error).startswith("Unterminated string") or behind >= size - _NEAR_END
        if cut and size >= line_formats.LINE_BYTES:
            return "record_too_long", f"more than {line_formats.LINE_BYTES} characters"
        if cut and self._fill(2 * size):
            return None
        if cut and self.stream.damage is not None:
            return "damaged_file", str(self.stream.damage)
        said = getattr(error, "msg", "") or ("nested too deeply" if isinstance(error, RecursionError) else str(error))
        return "not_json", f"{said}, {behind} characters behind its beginning" if behind >= 0 else said

    def _is_line(self, behind: int, in_array: bool) -> bool:
        """Whether a record that is no JSON is a line of JSON Lines, and not one that takes several."""
        line_end = self._buffer.find("\n", self._at)
        return self._lines or (not in_array and (line_end < 0 or self._at + behind <= line_end))

    def _pass_over(self, line: bool) -> None:
        """Go behind a record that is no JSON: behind its line, or behind the bracket that closes it."""
        depth, in_string, escaped = 0, False, False
        while True:
            for match in _STRUCTURE.finditer(self._buffer, self._at):
                sign, at = match[0], match.start()
                if line:
                    if sign == "\n":
                        self._go_to(at)
                        return
                elif escaped:
                    escaped = False
                elif sign == "\\":
                    escaped = in_string
                elif sign in '"\n':
                    in_string = sign == '"' and not in_string  # no string holds a line end
                elif in_string:
                    continue
                elif depth == 0 and sign in ",]}":
                    self._go_to(at)
                    return
                else:
                    depth += (sign in "{[") - (sign in "}]")
                    if depth == 0 and sign in "}]":
                        self._go_to(at + 1)
                        return
            self._go_to(len(self._buffer))
            if not self._fill(1):
                return

    def _skip(self, pattern: re.Pattern[str]) -> bool:
        """Go behind what the pattern matches; whether something follows."""
        while True:
            match = pattern.match(self._buffer, self._at)
            if match is not None:
                self._go_to(match.end())
            if self._at < len(self._buffer):
                return True
            if not self._fill(1):
                return False

    def _go_to(self, at: int) -> None:
        passed = self._buffer[self._at : at]
        self._position += len(passed) if passed.isascii() else len(passed.encode("utf-8", "surrogateescape"))
        self._at = at

    def _fill(self, size: int) -> bool:
        """Read on until the buffer holds ``size`` characters that are not read yet; whether there were more."""
        parts = [self._buffer[self._at :]]
        length = before = len(parts[0])
        while length < size and not self._ended:
            block = self.stream.read(BLOCK_BYTES)
            self._ended = not block
            parts.append(self._decoder.decode(block, self._ended))
            length += len(parts[-1])
        self._buffer, self._at = "".join(parts), 0
        return length > before
