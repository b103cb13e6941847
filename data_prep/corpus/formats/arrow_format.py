""".arrow -> documents, record batch by record batch: IPC files and streams, and so what `datasets` saves."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from data_prep.config import CleaningConfig, CorpusConfig
from data_prep.corpus.documents import CorpusFile, Document, Partition, Reject
from data_prep.corpus.formats.parquet_format import as_damage, open_anywhere, row_documents, table_decoder
from data_prep.corpus.formats.text_fields import column_bytes, column_facts, column_problem, column_values, with_facts
from data_prep.corpus.streams import DamagedFile

if TYPE_CHECKING:
    import pyarrow

_MAGIC = b"ARROW1"


class ArrowReader:
    """One file, opened, whose record batches come one after the other. One of them is in memory at a time."""

    def __init__(self, file: CorpusFile) -> None:
        import pyarrow

        assert file.path is not None
        self.handle = open_anywhere(file)
        self.path = file.path
        self.decoder = table_decoder(file)
        self.batch = 0
        """Number of the batch that is read next."""
        self.row = 1
        """Number of its first row, from 1."""
        try:
            in_blocks = self.handle.read(len(_MAGIC)) == _MAGIC
            self.handle.seek(0)
            open_reader = pyarrow.ipc.open_file if in_blocks else pyarrow.ipc.open_stream
            self._reader: Any = open_reader(self.handle)
            self._batches: int | None = self._reader.num_record_batches if in_blocks else None
        except Exception as error:
            self.handle.close()
            raise as_damage(error, file.path, "Arrow") from error

    @property
    def schema(self) -> "pyarrow.Schema":
        """Of the table."""
        return self._reader.schema

    @property
    def last_start(self) -> int:
        """The batch that was read last."""
        return self.batch - 1

    def read(self) -> "pyarrow.RecordBatch | None":
        """The next batch; None at the end.

        Raises:
            DamagedFile: it cannot be read. Of a stream nothing behind it can, either.
        """
        if self.batch == self._batches:
            return None
        self.batch += 1
        try:
            batch = self._reader.read_next_batch() if self._batches is None else self._reader.get_batch(self.batch - 1)
        except StopIteration:
            self.batch -= 1
            return None
        except Exception as error:
            if self._batches is None:
                self._batches = self.batch
            raise as_damage(error, self.path, "Arrow") from error
        self.row += batch.num_rows
        return batch

    def close(self) -> None:
        """Close the file too."""
        self._reader = None
        self.handle.close()


def count_batches(file: CorpusFile, config: CorpusConfig) -> tuple[int, int]:
    """(record batches, a damaged one included; bytes of the text columns) of a file."""
    batches = size = 0
    try:
        opened = ArrowReader(file)
    except DamagedFile:
        return 0, 0
    try:
        known = column_problem(opened.schema, config) is None
        while True:
            try:
                batch = opened.read()
            except DamagedFile:
                batches += 1
                continue
            if batch is None:
                return batches, size
            batches += 1
            size += column_bytes(batch, config) if known else 0
    finally:
        opened.close()


def read_arrow(
    opened: ArrowReader, file: CorpusFile, partition: Partition, config: CorpusConfig, cleaning: CleaningConfig
) -> Iterator[Document | Reject]:
    """The documents of the partition's batches; a damaged batch is one reject."""
    problem = column_problem(opened.schema, config)
    if problem is not None:
        if partition.begin == 0:
            yield Reject(id=file.name, reason="no_text_field", detail=problem, sample="")
        return
    while opened.batch < partition.end:
        number, first = opened.batch, opened.row
        try:
            batch = opened.read()
            if batch is None:
                return
            wanted = number >= partition.begin
            rows = zip(column_values(batch, config), column_facts(batch, config), strict=True) if wanted else ()
        except DamagedFile as damage:
            if number >= partition.begin:
                detail = f"record batch {number}: {damage}"
                yield Reject(id=f"{file.name}:{first}", reason="damaged_file", detail=detail, sample="")
            continue
        for place, (values, facts) in enumerate(rows, start=first):
            items = row_documents(f"{file.name}:{place}", values, opened.decoder, config, cleaning)
            yield from with_facts(items, facts)
