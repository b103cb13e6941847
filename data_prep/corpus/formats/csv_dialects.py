"""How the records of a .csv or .tsv file are written: what parts fields, and whether quotes are more than text."""

import csv
import dataclasses
from collections.abc import Collection, Iterator, Sequence

from data_prep.config import CorpusConfig, as_tuple, csv_delimiter
from data_prep.corpus.documents import Kind

_DELIMITERS = {"csv": ",;\t|", "tsv": "\t,;|"}
"""Of each kind those that are tried, where ``corpus.csv_delimiter`` names none: the usual one first."""


@dataclasses.dataclass(frozen=True)
class Dialect:
    """Of one file."""

    delimiter: str
    """One character."""
    quoted: bool
    """Whether fields may stand in quotes, as in RFC 4180; else a line is a record, and a quote is a character."""


def dialect_of(lines: Sequence[bytes], kind: Kind, config: CorpusConfig, *, whole: bool) -> Dialect:
    """The dialect of a file by its first lines, which begin with the header; ``whole``: these are all.

    Quotes mean something in a .csv file. In a .tsv file they are text, as its media type has it, unless its first lines
    are better understood with them.
    """
    texts = [line.decode("utf-8", "surrogateescape") for line in lines]
    delimiter = csv_delimiter(config) or _delimiter(texts[:1], _DELIMITERS[kind], as_tuple(config.text_field))
    if config.csv_quoting is not None:
        return Dialect(delimiter, config.csv_quoting == "minimal")
    return Dialect(delimiter, kind == "csv" or _quotes_matter(texts, delimiter, whole))


def header_names(fields: Sequence[str]) -> list[str]:
    """The names of the columns, without the blanks around them."""
    return [field.strip() for field in fields]


def _delimiter(header: list[str], candidates: str, wanted: Collection[str]) -> str:
    """The first one with which the header has the columns that are wanted; the usual one where none has."""
    for candidate in candidates:
        try:
            fields = next(csv.reader(header, delimiter=candidate), [])
        except csv.Error:
            continue
        if set(wanted) <= set(header_names(fields)):
            return candidate
    return candidates[0]


def _quotes_matter(lines: list[str], delimiter: str, whole: bool) -> bool:
    """Whether fewer records look wrong with quotes as in RFC 4180 than with a record in every line.

    Where both fit, quotes matter if a field begins with one: then something wrote them around fields.
    """
    rows = [line.rstrip("\r\n").split(delimiter) for line in lines if line.strip("\r\n")]
    if not any(field.startswith('"') for row in rows for field in row):
        return False
    columns = len(rows[0])
    wrong_plain = sum(len(row) != columns for row in rows)
    return _wrong_records(lines, delimiter, columns, whole) <= wrong_plain


def _wrong_records(lines: list[str], delimiter: str, columns: int, whole: bool) -> int:
    """Records that are not as RFC 4180 says, have too few or too many fields, or have swallowed whole records."""
    wrong = position = 0
    while position < len(lines):
        taken: list[str] = []
        reader = csv.reader(_taken(lines, position, taken), delimiter=delimiter, strict=True)
        try:
            while fields := next(reader, None):
                swallowed = (
                    len(taken) > 1 and columns > 1 and all(line.count(delimiter) + 1 == columns for line in taken)
                )
                wrong += swallowed or len(fields) != columns
                position += len(taken)
                taken.clear()
            if fields is None:
                return wrong
            position += len(taken)  # a blank line
        except csv.Error:
            if position + len(taken) == len(lines) and not whole:
                return wrong  # the record goes on behind these lines
            wrong, position = wrong + 1, position + 1
    return wrong


def _taken(lines: list[str], begin: int, taken: list[str]) -> Iterator[str]:
    """The lines from ``begin`` on; each that is asked for goes into ``taken``."""
    for number in range(begin, len(lines)):
        line = lines[number]
        taken.append(line)
        yield line
