"""What a corpus file holds: its hash, its size, and the units that partitions share out."""

import dataclasses
import hashlib
from typing import Any, BinaryIO

from data_prep.config import CorpusConfig, as_tuple
from data_prep.contract.shell.encodings import AUTO
from data_prep.corpus.builtin_corpus import BUILTIN, builtin_documents
from data_prep.corpus.documents import CorpusFile
from data_prep.corpus.raw_files import open_raw, web_version
from data_prep.corpus.streams import DamagedFile, open_text

LINE_STEP = 4 << 20

_LINE_STEPS = 1_024


class _Hashed:
    """A file object that hashes what is read of it."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self.sha256 = hashlib.sha256()
        self.size = 0

    def read(self, size: int) -> bytes:
        block = self._raw.read(size)
        self.sha256.update(block)
        self.size += len(block)
        return block

    def read_on(self) -> None:
        """To the end, which a damaged file may have behind what can be decompressed."""
        while self.read(1 << 20):
            pass

    def close(self) -> None:
        self._raw.close()


class _LineCounts:
    """Line ends before every ``step`` bytes; the step doubles so that a file has at most 1,024 of them."""

    def __init__(self) -> None:
        self.step = LINE_STEP
        self.counts: list[int] = []
        self.size = 0
        self._lines = 0

    def add(self, block: bytes) -> None:
        begin = 0
        while begin < len(block):
            taken = min(len(block) - begin, self.step - self.size % self.step)
            self._lines += block.count(b"\n", begin, begin + taken)
            self.size += taken
            begin += taken
            if self.size % self.step == 0:
                self.counts.append(self._lines)
                if len(self.counts) == _LINE_STEPS:
                    self.step *= 2
                    self.counts = self.counts[1::2]


def survey(file: CorpusFile, config: CorpusConfig) -> dict[str, Any]:
    """What a file holds.

    Returns:
        ``name``; ``size`` and ``sha256`` of the file as it is; ``units`` that partitions share out; ``bytes`` of its
        text, decompressed. For files that can be entered anywhere also ``line_step`` and ``lines``, the line ends
        before each multiple of it. Where it is not UTF-8, ``encoding``, which its beginning shows, or
        ``named_encoding`` of the configuration. Of a file of ``validation_paths``, ``validation``, which is true.

    Raises:
        UserError: the file cannot be read.
    """
    return survey_and_pin(file, config)[0]


def survey_and_pin(file: CorpusFile, config: CorpusConfig) -> tuple[dict[str, Any], CorpusFile, bool]:
    """As ``survey``; the file, one of a web server with the size and version that were read, which any later reading
    of it must find again; and whether it is text without damage."""
    split = {"validation": True} if file.validation else {}
    if file.path is None:
        return _survey_builtin(config) | split, file, False
    raw = open_raw(file)
    hashed, whole = _Hashed(raw), False
    try:
        if file.kind in ("parquet", "arrow", "mds"):
            entry = _table_units(file, config)
            hashed.read_on()
        else:
            entry, whole = _text_units(file, config, hashed)
    finally:
        hashed.close()
    version = web_version(raw)
    if version is not None:
        file = dataclasses.replace(file, size=hashed.size, version=version)
    named = {} if file.encoding == AUTO else {"named_encoding": file.encoding}
    found = {"name": file.name, "size": hashed.size, "sha256": hashed.sha256.hexdigest(), **entry, **named, **split}
    return found, file, whole


def _survey_builtin(config: CorpusConfig) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    for document_id, text in builtin_documents(config.builtin_max_bytes):
        content = f"{document_id}\n{text}\n".encode()
        digest.update(content)
        size += len(content)
    documents = len(builtin_documents(config.builtin_max_bytes))
    return {"name": BUILTIN, "size": size, "sha256": digest.hexdigest(), "units": documents, "bytes": size}


def _text_units(file: CorpusFile, config: CorpusConfig, raw: _Hashed) -> tuple[dict[str, Any], bool]:
    counts = _LineCounts()
    stream = open_text(file, raw=raw)
    while block := stream.read(1 << 20):
        counts.add(block)
    raw.read_on()
    found = {} if stream.decoder.found is None or file.kind == "warc" else {"encoding": stream.decoder.found}
    if file.kind == "html" or (file.kind == "txt" and config.txt_documents == "file"):
        return {"units": 1, "bytes": counts.size, **found}, stream.damage is None
    entry = {"units": counts.size, "bytes": counts.size, **found}
    if counts.counts and stream.can_enter and file.kind in ("txt", "jsonl"):
        entry |= {"line_step": counts.step, "lines": counts.counts}
    return entry, stream.damage is None


def _table_units(file: CorpusFile, config: CorpusConfig) -> dict[str, Any]:
    if file.kind == "arrow":
        from data_prep.corpus.formats.arrow_format import count_batches

        units, size = count_batches(file, config)
        return {"units": units, "bytes": size}
    return _mds_units(file) if file.kind == "mds" else _parquet_units(file, config)


def _mds_units(file: CorpusFile) -> dict[str, Any]:
    from data_prep.corpus.formats.mds_format import MdsReader

    try:
        opened = MdsReader(file)
    except DamagedFile:
        return {"units": 0, "bytes": 0}
    try:
        return {"units": opened.samples, "bytes": opened.size}
    finally:
        opened.close()


def _parquet_units(file: CorpusFile, config: CorpusConfig) -> dict[str, Any]:
    from data_prep.corpus.formats.parquet_format import ParquetReader

    try:
        opened = ParquetReader(file)
    except DamagedFile:
        return {"units": 0, "bytes": 0}
    try:
        return {"units": opened.file.metadata.num_row_groups, "bytes": opened.text_bytes(as_tuple(config.text_field))}
    finally:
        opened.close()
