"""A file, wherever it is and however compressed, as a stream of lines whose places are known.

All of it goes forward through blocks of bounded size: a file may be larger than memory, and so may a line of it.
"""

import bz2
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from data_prep.contract.remote import retried
from data_prep.corpus.documents import Compression, CorpusFile
from data_prep.corpus.encodings.decoder import Decoder, as_utf8, decoder_for, stream_encoding
from data_prep.corpus.encodings.detection import HEAD_BYTES
from data_prep.corpus.raw_files import is_url, open_raw, user_errors

BLOCK_BYTES = 1 << 20
_GZIP_BLOCK = 1 << 16

# 256 run-length blocks of zstd fit into this, each of 128 KiB when decompressed.
_ZSTD_BLOCK = 1 << 10
_ZSTD_MAX_WINDOW = 1 << 31  # dumps are made with `zstd --long=31`

_XZ_MOST_MEMORY = 1 << 30  # `xz -9` needs 65 MiB; a damaged header may ask for anything


class DamagedFile(Exception):
    """A file cannot be decompressed or decoded beyond this point."""


def raw_blocks(raw: BinaryIO, size: int = BLOCK_BYTES) -> Iterator[bytes]:
    """The rest of a file in blocks."""
    while block := raw.read(size):
        yield block


def decompressed(raw: BinaryIO, compression: Compression) -> Iterator[bytes]:
    """Decompressed blocks; raises DamagedFile after the last good one."""
    if compression == "gzip":
        return _gunzip(raw_blocks(raw, _GZIP_BLOCK))
    if compression == "zstd":
        return _unzstd(raw_blocks(raw))
    if compression is not None:
        return _unxz_or_bunzip2(raw_blocks(raw, _GZIP_BLOCK), compression)
    return raw_blocks(raw)


def _gunzip(blocks: Iterator[bytes]) -> Iterator[bytes]:
    member, padding = None, b""
    for block in blocks:
        while block:
            if member is None:
                block = block.lstrip(padding)
                if not block:
                    break
                member, padding = zlib.decompressobj(31), b"\0"  # which tapes and some tools write behind a member
            yield from _inflate(member, block)
            block = member.unused_data
            member = None if member.eof else member
    if member is not None:
        yield member.flush()
        if not member.eof:
            raise DamagedFile("the gzip data end too early")


def _inflate(member: Any, data: bytes) -> Iterator[bytes]:
    while data and not member.eof:
        before = member.copy()
        try:
            content = member.decompress(data, BLOCK_BYTES)
        except zlib.error as error:
            yield _salvage(before, data)
            raise DamagedFile(f"the gzip data are damaged ({error})") from error
        if content:
            yield content
        data = member.unconsumed_tail


def _salvage(member: Any, data: bytes) -> bytes:
    """What can be decompressed before the bad byte."""
    content = bytearray()
    for position in range(len(data)):
        try:
            content += member.decompress(data[position : position + 1])
        except zlib.error:
            break
    return bytes(content)


def _unzstd(blocks: Iterator[bytes]) -> Iterator[bytes]:
    import zstandard

    frame = None
    for block in blocks:
        for begin in range(0, len(block), _ZSTD_BLOCK):
            data = block[begin : begin + _ZSTD_BLOCK]
            while data:
                frame = frame or zstandard.ZstdDecompressor(max_window_size=_ZSTD_MAX_WINDOW).decompressobj()
                try:
                    content = frame.decompress(data)
                except zstandard.ZstdError as error:
                    raise DamagedFile(f"the zstd data are damaged ({error})") from error
                if content:
                    yield content
                data = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    if frame is not None:
        raise DamagedFile("the zstd data end too early")


def _unxz_or_bunzip2(blocks: Iterator[bytes], compression: Compression) -> Iterator[bytes]:
    """Streams one behind the other, zeros between them, as xz, pbzip2 and dumps of Wikipedia have them."""
    stream: Any = None
    for block in blocks:
        while block or (stream is not None and not stream.needs_input):
            if stream is None:
                block = block.lstrip(b"\0")
                if not block:
                    break
                stream = _new_stream(compression)
            try:
                content = stream.decompress(block, BLOCK_BYTES)
            except (lzma.LZMAError, OSError, EOFError) as error:
                raise DamagedFile(f"the {compression} data are damaged ({error})") from error
            if content:
                yield content
            block = stream.unused_data if stream.eof else b""
            stream = None if stream.eof else stream
    if stream is not None:
        raise DamagedFile(f"the {compression} data end too early")


def _new_stream(compression: Compression) -> Any:
    return bz2.BZ2Decompressor() if compression == "bzip2" else lzma.LZMADecompressor(memlimit=_XZ_MOST_MEMORY)


def _as_utf8(blocks: Iterator[bytes], encoding: str, errors: str) -> Iterator[bytes]:
    try:
        yield from as_utf8(blocks, encoding, errors)
    except UnicodeDecodeError as error:
        raise DamagedFile(f"no {encoding} ({error.reason})") from error


class BlockStream(io.RawIOBase):
    """Blocks as a file object; where they end with DamagedFile the file ends, and ``damage`` says why."""

    def __init__(self, blocks: Iterator[bytes], raw: BinaryIO) -> None:
        super().__init__()
        self._blocks = blocks
        self._raw = raw
        self._rest = memoryview(b"")
        self.damage: DamagedFile | None = None
        self.produced = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            while not self._rest and self.damage is None:
                self._rest = memoryview(next(self._blocks))
        except StopIteration:
            return 0
        except DamagedFile as damage:
            self.damage = damage
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        self.produced += count
        return count

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class TextStream:
    """A file as lines of bytes, which ``decoder`` reads. What was read, and where, is known at any time."""

    def __init__(self, stream: BlockStream, decoder: Decoder, position: int) -> None:
        self._stream = stream
        self._buffer = io.BufferedReader(stream, BLOCK_BYTES)
        self.decoder = decoder
        self.position = position
        """Byte of the decompressed stream that is read next."""
        self.number = 1
        """Of the line there."""
        self.previous_blank = True
        """Whether the line before it holds white space only."""
        self.can_enter = True
        """Whether it can be opened at any byte."""
        self.inside_line = False
        """Whether what was read last has no line end."""
        self.last_start = -1
        """Where the text that was read last begins."""

    @property
    def damage(self) -> DamagedFile | None:
        """Why the stream ends where it ends, if it has ended."""
        return self._stream.damage

    @property
    def fetched(self) -> int:
        """Bytes of the stream that were decompressed and handed on; all of them once it has ended."""
        return self._stream.produced

    def read_line(self, limit: int) -> bytes:
        """The next line, or ``limit`` bytes of it; empty at the end."""
        line = self._buffer.readline(limit)
        if line:
            whole = line.endswith(b"\n")
            self.position += len(line)
            self.number += whole
            self.inside_line = not whole
        return line

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes."""
        block = self._buffer.read(size)
        self.position += len(block)
        return block

    def at_end(self) -> bool:
        """Whether nothing follows."""
        return not self._buffer.peek(1)

    def skip_line(self) -> bytes:
        """Read to the end of the line; its beginning."""
        blank, beginning = True, b""
        while part := self.read_line(BLOCK_BYTES):
            beginning = beginning or part
            blank = blank and part.isspace()
            if part.endswith(b"\n"):
                break
        self.previous_blank = blank
        return beginning

    def skip_to(self, begin: int) -> None:
        """Read on to the first line that starts at ``begin`` or later."""
        while self.position < begin:
            self.last_start = self.position
            if not self.skip_line():
                break

    def close(self) -> None:
        """Close the file too."""
        self._buffer.close()


def open_text(file: CorpusFile, begin: int = 0, lines_before: int | None = None, raw: Any = None) -> TextStream:
    """The text of a file, from the first line that starts at ``begin`` or later.

    Plain files are entered there when ``lines_before``, the line ends before ``begin``, is known. ``raw`` is the file,
    where it is open already.
    """
    raw = raw or open_raw(file)
    head, blocks = _head(decompressed(raw, file.compression))
    whole = None if file.kind == "warc" else stream_encoding(head, file.encoding)  # its records are read one by one
    if whole is not None:
        blocks, decoder = _as_utf8(blocks, whole, file.errors), Decoder(named="utf-8", found=whole)
    else:
        decoder = decoder_for(head, file.encoding, file.errors)
        if begin and lines_before is not None and file.compression is None and (seen := _look_back(raw, begin)):
            stream = TextStream(BlockStream(raw_blocks(raw), raw), decoder, begin)
            stream.number, stream.last_start = lines_before + 1, begin - 1
            at_line_start, blank = seen
            if not at_line_start:
                stream.skip_line()
            stream.previous_blank = blank and (at_line_start or stream.previous_blank)
            return stream
    if file.kind in ("csv", "tsv") and _lines_end_with_cr(head, whole):
        blocks = (block.replace(b"\r", b"\n") for block in blocks)
    stream = TextStream(BlockStream(blocks, raw), decoder, 0)
    stream.can_enter = whole is None and file.compression is None
    stream.skip_to(begin)
    return stream


def _lines_end_with_cr(head: bytes, wide: str | None) -> bool:
    """Whether the lines of a file's beginning end as those of old Macs, and of some spreadsheets, do."""
    text = head if wide is None else head.decode(wide, "ignore").encode("utf-8", "surrogatepass")
    return b"\r" in text.rstrip(b"\r") and b"\n" not in text


def _head(blocks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """The first HEAD_BYTES, and all blocks."""
    first: list[bytes] = []
    size = 0
    damage: DamagedFile | None = None
    try:
        while size < HEAD_BYTES:
            first.append(next(blocks))
            size += len(first[-1])
    except StopIteration:
        pass
    except DamagedFile as error:
        damage = error

    def all_blocks() -> Iterator[bytes]:
        yield from first
        if damage is not None:
            raise damage
        yield from blocks

    return b"".join(first)[:HEAD_BYTES], all_blocks()


def _look_back(raw: BinaryIO, begin: int) -> tuple[bool, bool] | None:
    """(whether a line starts at ``begin``, whether all of the line before it, or of it, is white space); the file is
    then at ``begin``. None where the file cannot be entered there."""
    if not raw.seekable():  # a server that only sends files whole
        return None
    at_line_start, blank, end = False, True, begin
    while end and blank:
        start = max(0, end - HEAD_BYTES)
        raw.seek(start)
        content = raw.read(end - start)
        if end == begin:
            at_line_start = content.endswith(b"\n")
            content = content[: len(content) - at_line_start]
        _, line_end, line = content.rpartition(b"\n")
        blank = not line.strip()
        if line_end:
            break
        end = start
    raw.seek(begin)
    return at_line_start, blank


def file_state(file: CorpusFile) -> tuple[Any, ...]:
    """What tells a local file from a later one at the same path."""
    if file.path is None or is_url(file.path):
        return (file,)
    path = Path(file.path)
    with user_errors(file.path):
        status = retried(path.stat, f"read the corpus file {path}")
    return (file, status.st_ino, status.st_size, status.st_mtime_ns)
