"""Indexes of large .gz files, by which a partition in the middle is read without all that stands before it.

A gzip stream can be entered only where someone has kept the 32 KB that came before (zran.c of zlib). Without that each
process that reads a part of a file decompresses it from its beginning: a thousand processes a thousand times.
"""

import dataclasses
import io
from pathlib import Path
from typing import Any, BinaryIO, cast

from data_prep.contract.files import write_atomically
from data_prep.corpus.documents import CorpusFile
from data_prep.corpus.raw_files import open_raw
from data_prep.corpus.streams import TextStream, open_text
from data_prep.corpus.surveys import LINE_STEP

LARGE_TEXT_BYTES = 1 << 30
"""Text of a .gz file from which an index is worth the time to make it; less is decompressed in a few seconds."""

MIN_SPACING = 1 << 24
"""Text between two places where a file can be entered."""

MOST_PLACES = 1 << 10
"""Of them, so that an index takes 32 MB at most."""


def needs_index(file: CorpusFile, survey: dict[str, Any]) -> bool:
    """Whether a file has partitions that lie far behind its beginning."""
    large = survey["bytes"] >= LARGE_TEXT_BYTES and survey["units"] > 1
    return large and file.compression == "gzip" and file.kind in ("txt", "jsonl")


BUFFER_BYTES = 1 << 25
"""Text that is decompressed at once: indexed_gzip begins each time at the last place before it."""

READ_BYTES = 1 << 18
"""Compressed bytes that are read at once; those behind what is wanted are read for nothing."""


@dataclasses.dataclass(frozen=True)
class GzipIndex:
    """The index of one file, by the hash of its bytes."""

    folder: Path
    """Where indexes lie."""
    sha256: str
    """Of the compressed file."""

    @property
    def places(self) -> Path:
        """As indexed_gzip exports them."""
        return self.folder / f"{self.sha256}.gzidx"

    @property
    def line_counts(self) -> Path:
        """[n] i64, line ends before each multiple of ``LINE_STEP`` bytes from the first on."""
        return self.folder / f"{self.sha256}.npy"

    def exists(self) -> bool:
        """Whether it was made; ``places`` is written last."""
        return self.places.exists()

    def open_text(self, file: CorpusFile, begin: int) -> TextStream:
        """As ``streams.open_text``, from a place close to ``begin``, which is a multiple of ``LINE_STEP``."""
        import numpy as np
        from indexed_gzip import IndexedGzipFile

        index = str(self.places)
        raw = IndexedGzipFile(
            fileobj=open_raw(file), index_file=index, readbuf_size=READ_BYTES, buffer_size=BUFFER_BYTES
        )
        counts = np.load(self.line_counts, mmap_mode="r")
        number = begin // LINE_STEP
        lines_before = int(counts[number - 1]) if number else 0
        return open_text(dataclasses.replace(file, compression=None), begin, lines_before, cast(BinaryIO, raw))


def make_index(file: CorpusFile, survey: dict[str, Any], folder: Path) -> bool:
    """Read a file once and write its index; False where it cannot be had, and the file is read as it is without one.

    Raises:
        UserError: the file cannot be read.
    """
    import numpy as np
    from indexed_gzip import IndexedGzipFile, ZranError

    index = GzipIndex(folder, survey["sha256"])
    counts, position = [], 0
    with open_raw(file) as raw:
        if not raw.seekable():  # a server that only sends files whole
            return False
        spacing = max(MIN_SPACING, -(-survey["bytes"] // MOST_PLACES))
        try:
            stream = IndexedGzipFile(fileobj=raw, spacing=spacing)
            lines = 0
            while block := stream.read(LINE_STEP):
                lines += block.count(b"\n")
                position += len(block)
                counts.append(lines)
        except (ZranError, OSError):
            return False
        if position != survey["bytes"]:
            return False
        content = io.BytesIO()
        stream.export_index(fileobj=content)
    line_counts = io.BytesIO()
    np.save(line_counts, np.array(counts, dtype=np.int64))
    folder.mkdir(exist_ok=True)
    write_atomically(index.line_counts, line_counts.getvalue(), durable=True)
    write_atomically(index.places, content.getvalue(), durable=True)
    return True
