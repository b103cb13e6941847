""".parquet -> documents, row group by row group."""

import tempfile
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO

from data_prep.config import CleaningConfig, CorpusConfig, as_tuple
from data_prep.contract.command_line import UserError
from data_prep.contract.remote import reason
from data_prep.contract.shell.encodings import AUTO
from data_prep.corpus.documents import CorpusFile, Document, Partition, Reject, whole_document
from data_prep.corpus.encodings.decoder import Decoder
from data_prep.corpus.formats.line_formats import undecodable
from data_prep.corpus.formats.text_fields import (
    Facts,
    column_facts,
    column_problem,
    column_values,
    fact_fields,
    joined_fields,
    no_text_field,
    with_facts,
)
from data_prep.corpus.raw_files import open_raw, user_errors
from data_prep.corpus.streams import BLOCK_BYTES, DamagedFile, decompressed

_BATCH_ROWS = 64


class ParquetReader:
    """One file, opened. It is read from its end, so a compressed one, or one of a server that sends files only whole,
    lies in a temporary file."""

    def __init__(self, file: CorpusFile) -> None:
        import pyarrow.parquet

        assert file.path is not None
        self.handle = open_anywhere(file)
        self.path = file.path
        self.decoder = table_decoder(file)
        try:
            # Buffered: a row group may be larger than memory.
            self.file = pyarrow.parquet.ParquetFile(
                self.handle, pre_buffer=False, buffer_size=BLOCK_BYTES, page_checksum_verification=True
            )
        except Exception as error:
            self.handle.close()
            raise as_damage(error, file.path, "parquet") from error

    def text_bytes(self, fields: Collection[str]) -> int:
        """Of the text columns, decompressed, as the file says."""
        metadata = self.file.metadata
        total = 0
        for group in range(metadata.num_row_groups):
            columns = metadata.row_group(group)
            for column in range(columns.num_columns):
                if columns.column(column).path_in_schema in fields:
                    total += columns.column(column).total_uncompressed_size
        return total

    def close(self) -> None:
        """Close the file too."""
        self.file.close()
        self.handle.close()


def table_decoder(file: CorpusFile) -> Decoder:
    """By its format a string is UTF-8, so another encoding is only looked at where one is none."""
    named = None if file.encoding == AUTO else file.encoding
    return Decoder(legacy=named, found=named, replace=file.errors == "replace")


def open_anywhere(file: CorpusFile) -> BinaryIO:
    """A file to enter at any place. It is a temporary one where the file is compressed, or its server sends it whole.

    Raises:
        DamagedFile: it cannot be decompressed to its end.
        UserError: there is no place for it.
    """
    raw = open_raw(file)
    if file.compression is None and raw.seekable():
        return raw
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the reader
    try:
        with raw:
            for block in decompressed(raw, file.compression):
                unpacked.write(block)
    except OSError as error:
        unpacked.close()
        raise UserError(f"cannot unpack {file.path} into {tempfile.gettempdir()}: {reason(error)}") from error
    except BaseException:
        unpacked.close()
        raise
    unpacked.seek(0)
    return unpacked  # pyright: ignore[reportReturnType]


def as_damage(error: Exception, path: str, kind: str) -> Exception:
    """What is wrong with the content of a file of this kind, by an error of pyarrow.

    pyarrow raises an OSError for most kinds of damage; only a real one has a number. Reading raises UserError.
    """
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        with user_errors(path):
            raise error
    return DamagedFile(f"no readable {kind} ({' '.join(str(error).split())[:300]})")


def read_parquet(
    opened: ParquetReader, file: CorpusFile, partition: Partition, config: CorpusConfig, cleaning: CleaningConfig
) -> Iterator[Document | Reject]:
    """The documents of the partition's row groups; a damaged row group is one reject behind the rows before it."""
    metadata = opened.file.metadata
    problem = column_problem(opened.file.schema_arrow, config)
    if problem is not None:
        if partition.begin == 0:
            yield Reject(id=file.name, reason="no_text_field", detail=problem, sample="")
        return
    first = 1 + sum(metadata.row_group(group).num_rows for group in range(partition.begin))
    for group in range(partition.begin, min(partition.end, metadata.num_row_groups)):
        number = first
        try:
            for number, (values, facts) in enumerate(_values(opened, group, config), start=first):
                items = row_documents(f"{file.name}:{number}", values, opened.decoder, config, cleaning)
                yield from with_facts(items, facts)
        except DamagedFile as damage:
            detail = f"row group {group}: {damage}"
            yield Reject(id=f"{file.name}:{number + 1}", reason="damaged_file", detail=detail, sample="")
        first += metadata.row_group(group).num_rows


def row_documents(
    document_id: str, values: list[bytes | None], decoder: Decoder, config: CorpusConfig, cleaning: CleaningConfig
) -> Iterator[Document | Reject]:
    """The documents of a row, by the values of its text columns."""
    if values == [None]:
        (name,) = as_tuple(config.text_field)
        yield no_text_field(document_id, name, {name: None}, "")
        return
    texts: list[str] = []
    encoding: str | None = None
    for value in filter(None, values) if len(values) > 1 else values:
        found = decoder.read(value or b"")
        if found is None:
            yield undecodable(document_id, value or b"", decoder)
            return
        texts.append(found.text)
        encoding = encoding or found.encoding
    yield from with_facts(whole_document(document_id, joined_fields(texts), cleaning), Facts(encoding=encoding))


def _values(opened: ParquetReader, group: int, config: CorpusConfig) -> Iterator[tuple[list[bytes | None], Facts]]:
    columns = [*as_tuple(config.text_field), *filter(None, fact_fields(config))]
    batches: Iterator[Any] = opened.file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns)
    while True:
        try:
            batch = next(batches, None)
            if batch is None:
                return
            rows = zip(column_values(batch, config), column_facts(batch, config), strict=True)
        except Exception as error:
            raise as_damage(error, opened.path, "parquet") from error
        yield from rows
