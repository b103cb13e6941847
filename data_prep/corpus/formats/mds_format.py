""".mds -> documents: the shards of MosaicML Streaming, sample by sample.

A shard is, all numbers u32 little-endian:

    n              samples
    offsets[n+1]   where each sample begins, and where the last one ends
    JSON           column_names, column_encodings, column_sizes (null: each sample says), up to the first sample
    samples        the sizes of the columns that have none above, then the columns' bytes
"""

import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from data_prep.config import CleaningConfig, CorpusConfig, as_tuple
from data_prep.corpus.documents import CorpusFile, Document, Partition, Reject, sample
from data_prep.corpus.formats.line_formats import LINE_BYTES, undecodable
from data_prep.corpus.formats.parquet_format import open_anywhere, table_decoder
from data_prep.corpus.formats.text_fields import documents_of_record, fact_fields
from data_prep.corpus.streams import DamagedFile

_TEXTS = ("str", "bytes", "json")
_NUMBERS = {
    "int": "<i8",
    **{f"{sign}int{bits}": f"<{sign or 'i'}{bits // 8}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
}
_HEAD_BYTES = 1 << 24


class MdsReader:
    """One shard, opened. It is entered anywhere, so a compressed one lies in a temporary file."""

    def __init__(self, file: CorpusFile) -> None:
        self.handle = open_anywhere(file)
        self.decoder = table_decoder(file)
        try:
            self.samples = self._numbers(0, 1)[0]
            """In the shard."""
            begin = 4 * (self.samples + 2)
            end = self._numbers(4, 1)[0]
            if not begin < end <= begin + _HEAD_BYTES:
                raise ValueError("the offset of its first sample is wrong")
            said = json.loads(self._read(begin, end))
            self.names: list[str] = said["column_names"]
            self.encodings: list[str] = said["column_encodings"]
            self.sizes: list[int | None] = said["column_sizes"]
            self._end = self._numbers(4 * (self.samples + 1), 1)[0]
            if not len(self.names) == len(self.encodings) == len(self.sizes):
                raise ValueError("its columns have no names, encodings or sizes")
        except (ValueError, KeyError, TypeError, EOFError) as error:
            self.handle.close()
            raise DamagedFile(f"no readable MDS shard ({type(error).__name__}: {error})") from error

    @property
    def size(self) -> int:
        """Bytes of all samples."""
        return self._end - 4 * (self.samples + 2)

    def close(self) -> None:
        """Close the file too."""
        self.handle.close()

    def problem(self, config: CorpusConfig) -> str | None:
        """Why one of the columns holds no text; None where all do."""
        for name in as_tuple(config.text_field):
            top = name if name in self.names else name.split(".")[0]
            if top not in self.names:
                return f"no column '{name}' among {', '.join(self.names)[:200]}"
            encoding = self.encodings[self.names.index(top)]
            if encoding not in _TEXTS or (top != name and encoding != "json"):
                return f"the column '{name}' is {encoding}"
        return None

    def sample(self, number: int) -> dict[str, bytes]:
        """Column -> bytes of a sample, counted from 0.

        Raises:
            DamagedFile: it lies outside of the shard, or its columns do not fill it.
        """
        try:
            begin, end = self._numbers(4 * (number + 1), 2)
            if not 0 <= end - begin <= LINE_BYTES:
                raise ValueError(f"it has {end - begin} bytes")
            data = self._read(begin, end)
            variable = sum(not size for size in self.sizes)
            said = iter(struct.unpack_from(f"<{variable}I", data))
            at, columns = 4 * variable, {}
            for name, fixed in zip(self.names, self.sizes, strict=True):
                size = fixed or next(said)
                columns[name] = data[at : at + size]
                at += size
            if at != len(data):
                raise ValueError(f"its columns take {at} of {len(data)} bytes")
        except (ValueError, EOFError, struct.error) as error:
            raise DamagedFile(f"sample {number}: {error}") from error
        return columns

    def _numbers(self, begin: int, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}I", self._read(begin, begin + 4 * count))

    def _read(self, begin: int, end: int) -> bytes:
        self.handle.seek(begin)
        data = self.handle.read(end - begin)
        if len(data) < end - begin:
            raise EOFError("the file ends before it")
        return data


def read_mds(
    opened: MdsReader, file: CorpusFile, partition: Partition, config: CorpusConfig, cleaning: CleaningConfig
) -> Iterator[Document | Reject]:
    """The documents of the partition's samples; a damaged sample is one reject."""
    problem = opened.problem(config)
    if problem is not None:
        if partition.begin == 0:
            yield Reject(id=file.name, reason="no_text_field", detail=problem, sample="")
        return
    for number in range(partition.begin, min(partition.end, opened.samples)):
        document_id = f"{file.name}:{number + 1}"
        try:
            columns = opened.sample(number)
        except DamagedFile as damage:
            yield Reject(id=document_id, reason="damaged_file", detail=str(damage), sample="")
            continue
        found = _record(document_id, columns, opened, config)
        if isinstance(found, Reject):
            yield found
        else:
            record, text_encoding = found
            yield from documents_of_record(document_id, record, "", config, cleaning, text_encoding)


def _record(
    document_id: str, columns: dict[str, bytes], opened: MdsReader, config: CorpusConfig
) -> tuple[dict[str, Any], str | None] | Reject:
    """The columns that the text and its facts are in, decoded, and the encoding of a document; or the reject of the
    column that cannot be."""
    record: dict[str, Any] = {}
    found_encoding: str | None = None
    tops = {part for field in as_tuple(config.text_field) for part in (field, field.split(".")[0])}
    facts = {part for field in filter(None, fact_fields(config)) for part in (field, field.split(".")[0])}
    for name, encoding in zip(opened.names, opened.encodings, strict=True):
        if name not in tops and (name not in facts or encoding not in (*_TEXTS, *_NUMBERS, "str_int", "str_float")):
            continue
        if (kind := _NUMBERS.get(encoding)) is not None:
            data = columns[name]
            record[name] = np.frombuffer(data, dtype=kind)[0].item() if len(data) == np.dtype(kind).itemsize else None
            continue
        found = opened.decoder.read(columns[name])
        if found is None and name not in tops:
            continue
        if found is None:
            return undecodable(document_id, columns[name], opened.decoder)
        content = found.text
        if name in tops:
            found_encoding = found_encoding or found.encoding
        try:
            record[name] = json.loads(content) if encoding == "json" else content
        except (ValueError, RecursionError) as error:
            return Reject(id=document_id, reason="not_json", detail=str(error), sample=sample(content))
    return record, found_encoding
