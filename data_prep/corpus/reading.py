"""Files -> cleaned documents, in partitions that can be read one by one, in any order and by any process.

    files.find_corpus_files       what the configuration names
    surveys.survey                what is in a file: the only pass over all of it before it is used
    partitions.plan_partitions    which share of which file is one piece of work
    read_partition                the documents and rejects of one partition

The formats are in line_formats (.txt, .jsonl), csv_format, json_format, parquet_format,
arrow_format, mds_format, warc_format and html_format.
"""

from collections.abc import Iterator
from typing import Any

from data_prep.config import CleaningConfig, CorpusConfig, PrepConfig
from data_prep.corpus.builtin_corpus import BUILTIN, builtin_documents
from data_prep.corpus.documents import CorpusFile, Document, Kind, Partition, Reject, whole_document
from data_prep.corpus.formats.gzip_index import GzipIndex
from data_prep.corpus.formats.json_format import JsonReader
from data_prep.corpus.formats.line_formats import read_lines
from data_prep.corpus.partitions import plan_partitions
from data_prep.corpus.streams import DamagedFile, TextStream, file_state, open_text
from data_prep.corpus.surveys import survey

_resting: tuple[Any, Any] | None = None
"""(what it reads, reader) of the partition that this process has read last: where the next one lies further on in the
same file, its reader reads on instead of decompressing the file from its beginning again."""


def read_partition(
    file: CorpusFile,
    partition: Partition,
    config: CorpusConfig,
    cleaning: CleaningConfig,
    index: GzipIndex | None = None,
) -> Iterator[Document | Reject]:
    """The documents and rejects of one partition, in their order.

    A .gz file with an ``index`` is read from there on; the others from their beginning.

    Raises:
        UserError: the file cannot be read; damaged content is a Reject instead.
    """
    if file.kind == BUILTIN:
        for document_id, text in builtin_documents(config.builtin_max_bytes)[partition.begin : partition.end]:
            yield from whole_document(document_id, text, cleaning)
        return
    if file.kind in ("parquet", "arrow", "mds"):
        items = _read_table(file, partition, config, cleaning)
    else:
        items = _read_text(file, partition, config, cleaning, index)
    found = False
    for item in items:
        found = True
        yield item
    if not found and partition.begin == 0 and _holds_nothing(file, config):
        yield Reject(id=file.name, reason="empty", detail="the file holds no text", sample="")


def _read_table(
    file: CorpusFile, partition: Partition, config: CorpusConfig, cleaning: CleaningConfig
) -> Iterator[Document | Reject]:
    key = file_state(file)
    opened = _take(key, partition.begin if file.kind == "arrow" else None)
    open_table, read_table = _table_format(file.kind)
    if opened is None:
        try:
            opened = open_table(file)
        except DamagedFile as damage:
            if partition.begin == 0:
                yield Reject(id=file.name, reason="damaged_file", detail=str(damage), sample="")
            return
    yield from read_table(opened, file, partition, config, cleaning)
    _rest(key, opened)


def _table_format(kind: Kind) -> tuple[Any, Any]:
    """(what opens a file of this kind, what reads a partition of it), of a kind that is no text."""
    if kind == "parquet":
        from data_prep.corpus.formats.parquet_format import ParquetReader, read_parquet

        return ParquetReader, read_parquet
    if kind == "arrow":
        from data_prep.corpus.formats.arrow_format import ArrowReader, read_arrow

        return ArrowReader, read_arrow
    from data_prep.corpus.formats.mds_format import MdsReader, read_mds

    return MdsReader, read_mds


class _LineReader:
    """Reads the partitions of a .txt or .jsonl file."""

    def __init__(self, stream: TextStream, file: CorpusFile, config: CorpusConfig, cleaning: CleaningConfig) -> None:
        self.stream = stream
        self._arguments = (file, config, cleaning)

    @property
    def last_start(self) -> int:
        return self.stream.last_start

    def read(self, partition: Partition) -> Iterator[Document | Reject]:
        file, config, cleaning = self._arguments
        self.stream.skip_to(partition.begin)
        yield from read_lines(self.stream, file, partition, config, cleaning)


def _read_text(
    file: CorpusFile, partition: Partition, config: CorpusConfig, cleaning: CleaningConfig, index: GzipIndex | None
) -> Iterator[Document | Reject]:
    whole = file.kind == "html" or (file.kind == "txt" and config.txt_documents == "file")
    if whole and partition.begin > 0:
        return
    key = (file_state(file), config, cleaning)
    reader = _take(key, partition.begin)
    if reader is None:
        if index is None:
            reader = _open_reader(file, partition, config, cleaning)
        else:
            reader = _LineReader(index.open_text(file, partition.begin), file, config, cleaning)
    yield from reader.read(partition)
    if whole:
        reader.stream.close()
        return
    yield from _damage_behind(reader, file, partition, config)
    _rest(key, reader)


def _open_reader(file: CorpusFile, partition: Partition, config: CorpusConfig, cleaning: CleaningConfig) -> Any:
    if file.kind == "warc":
        from data_prep.corpus.formats.warc_format import WarcReader

        return WarcReader(open_text(file), file, cleaning)
    if file.kind == "json":
        return JsonReader(open_text(file), file, config, cleaning)
    if file.kind == "html":
        from data_prep.corpus.formats.html_format import HtmlReader

        return HtmlReader(open_text(file), file, cleaning)
    if file.kind in ("csv", "tsv"):
        from data_prep.corpus.formats.csv_format import CsvReader

        return CsvReader(open_text(file), file, config, cleaning)
    stream = open_text(file, partition.begin, partition.lines_before)
    return _LineReader(stream, file, config, cleaning)


def _damage_behind(reader: Any, file: CorpusFile, partition: Partition, config: CorpusConfig) -> Iterator[Reject]:
    """A reject if the file is damaged behind the partition's last text; inside one it was rejected with it."""
    if file.kind == "json":
        return  # it rejects a damaged end itself
    stream: TextStream = reader.stream
    ended = reader.at_end() if file.kind == "warc" else stream.at_end()
    if not ended or stream.damage is None:
        return
    if file.kind in ("csv", "tsv") and reader.records.cut:
        return
    if file.kind in ("txt", "jsonl") and stream.inside_line:
        return
    if file.kind == "txt" and config.txt_documents == "paragraph" and not stream.previous_blank:
        return
    if partition.begin < stream.fetched <= partition.end or stream.fetched == 0:
        yield Reject(id=file.name, reason="damaged_file", detail=str(stream.damage), sample="")


def _holds_nothing(file: CorpusFile, config: CorpusConfig) -> bool:
    """Whether a file is whole and without any text, as an empty one."""
    if file.kind in ("parquet", "arrow", "mds"):
        return True  # its first rows gave nothing, not even a reject
    stream = open_text(file)
    try:
        if file.kind in ("csv", "tsv"):
            from data_prep.corpus.formats.csv_format import holds_no_record

            return holds_no_record(stream, file, config) and stream.damage is None
        if file.kind == "json":
            return JsonReader(stream, file, config, CleaningConfig()).at_end()
        if file.kind == "warc":
            from data_prep.corpus.formats.warc_format import WarcReader

            return WarcReader(stream, file, CleaningConfig()).at_end() and stream.damage is None
        while not stream.at_end():
            stream.skip_line()
            if not stream.previous_blank:
                return False
        return stream.damage is None
    finally:
        stream.close()


def _take(key: Any, begin: int | None = None) -> Any:
    """The resting reader, if it reads this and has not passed ``begin`` yet."""
    global _resting
    resting, _resting = _resting, None
    if resting is None:
        return None
    if resting[0] == key and (begin is None or resting[1].last_start < begin):
        return resting[1]
    _close(resting[1])
    return None


def _rest(key: Any, reader: Any) -> None:
    """Keep a reader for the next partition."""
    global _resting
    if _resting is not None:
        _close(_resting[1])
    _resting = (key, reader)


def _close(reader: Any) -> None:
    getattr(reader, "stream", reader).close()


def read_texts(files: list[CorpusFile], config: PrepConfig) -> Iterator[str]:
    """The cleaned texts of whole files, in order."""
    surveys = [survey(file, config.corpus) for file in files]
    for partition in plan_partitions(files, surveys):
        for item in read_partition(files[partition.file], partition, config.corpus, config.cleaning):
            if isinstance(item, Document):
                yield item.text
