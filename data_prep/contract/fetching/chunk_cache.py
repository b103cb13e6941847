"""Chunks of remote shards, each fetched by itself and kept on this machine's disk within a limit.

A process needs a few hundred chunks of about a megabyte at a time, from as many shards of some hundred megabytes each:
so it asks for ranges of bytes. Every chunk is one file. Of all processes that share the cache, the chunks used longest
ago make room for new ones.
"""

import contextlib
import mmap
import os
import threading
import zlib
from pathlib import Path

from data_prep.contract.command_line import UserError
from data_prep.contract.files import process_name
from data_prep.contract.remote import RemoteFolder, cache_folder, filesystem_of, locked, open_web, reason_on_disk
from data_prep.contract.shard_format import chunk_hash
from data_prep.contract.shard_index import ShardIndex

SIZE_VARIABLE = "NARROWBERT_CACHE_BYTES"
DEFAULT_BYTES = 32 << 30
"""Bytes of all chunks in the cache; four times what eight processes read from at a time, and more."""
_LOCKS = 64


class ChunkCache:
    """The chunks of one split behind a URL.

    Args:
        remote: the shard folder.
        folder: the cache of its version; its name is that of the chunks' folder.
        index: of the split.
    """

    def __init__(self, remote: RemoteFolder, folder: Path, index: ShardIndex) -> None:
        self._remote, self._index = remote, index
        self._base = cache_folder() / "chunks"
        self._folder = self._base / folder.name
        self._has_ranges = True
        self._fetched_since_scan: int | None = None
        self._lock = threading.Lock()

    def open(self, chunk: int) -> mmap.mmap | None:
        """The bytes of a chunk, fetched unless a sound copy is here; their hash has been checked.

        Returns:
            None where the server sends no ranges: then its shards can only be fetched whole.

        Raises:
            UserError: they cannot be had or kept, or are not those that were written.
        """
        shard = self._index.shard_of(chunk)
        path = self._folder / Path(self._index.name(shard)).stem / str(chunk)
        if (found := self._sound(path, chunk)) is not None or not self._has_ranges:
            return found
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # A few locks for all chunks: ranks that ask for one at once fetch it once, and others seldom wait.
            with locked(self._base / f".lock-{zlib.crc32(str(path).encode()) % _LOCKS}"):
                if (found := self._sound(path, chunk)) is not None:
                    return found
                content = self._fetch(shard, chunk)
                if content is None:
                    self._has_ranges = False
                    return None
                self._make_room(len(content))
                temporary = path.with_name(f".{chunk}.{process_name()}-{threading.get_ident()}")
                try:
                    temporary.write_bytes(content)
                    temporary.replace(path)
                finally:
                    temporary.unlink(missing_ok=True)
                return _map(path)
        except OSError as error:
            raise UserError(f"cannot keep chunks in the cache {self._folder}: {reason_on_disk(error)}") from error

    def _sound(self, path: Path, chunk: int) -> mmap.mmap | None:
        """The copy of a chunk, if it is there and sound; one that is not is deleted."""
        try:
            data = _map(path)
            os.utime(path)  # the newest time of use
        except (OSError, ValueError):
            return None
        if chunk_hash(memoryview(data)) == self._index.chunk_hash(chunk):
            return data
        path.unlink(missing_ok=True)
        return None

    def _fetch(self, shard: int, chunk: int) -> bytes | None:
        name, (offset, length) = self._index.name(shard), self._index.place(chunk)
        content = self._remote.retried(name, lambda: read_range(self._remote.file_url(name), offset, length))
        if content is not None and chunk_hash(content) != self._index.chunk_hash(chunk):
            number = chunk - self._index.chunks(shard).start
            raise UserError(
                f"shard {self._remote}/{name}, chunk {number}: its bytes are not those that were written (hash "
                "mismatch); check the source"
            )
        return content

    def _make_room(self, length: int) -> None:
        """Delete what was used longest ago, where the cache would be too large."""
        limit = _limit()
        with self._lock:
            # Each process counts what it adds itself, and looks at the folder after a small part of the limit.
            if self._fetched_since_scan is not None and self._fetched_since_scan + length <= limit // 64:
                self._fetched_since_scan += length
                return
            self._fetched_since_scan = 0
        files = []
        for path in self._base.glob("*/*/*"):
            with contextlib.suppress(OSError):  # another process has just deleted it
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        over = sum(size for _, size, _ in files) + length - limit
        if over > 0:
            over += limit // 8  # so that not every chunk has to make room
        for _, size, path in sorted(files):
            if over <= 0:
                break
            with contextlib.suppress(OSError):
                path.unlink()
            over -= size


def read_range(url: str, offset: int, length: int) -> bytes | None:
    """``length`` bytes of a file from ``offset`` on; None where the server sends whole files only.

    Raises:
        Exception: whatever the file system raises, or ConnectionError where fewer bytes come.
    """
    if url.startswith(("http://", "https://")):
        with open_web(url, {"Range": f"bytes={offset}-{offset + length - 1}"}) as stream:
            if stream.r.status != 206:
                return None
            content = b"".join(iter(lambda: stream.read(1 << 20), b""))
    else:
        filesystem, path = filesystem_of(url)
        content = filesystem.cat_file(path, start=offset, end=offset + length)
    if len(content) != length:
        raise ConnectionError(f"{len(content)} bytes came instead of {length}")
    return content


def _limit() -> int:
    text = os.environ.get(SIZE_VARIABLE) or str(DEFAULT_BYTES)
    if not text.isdecimal() or int(text) == 0:
        raise UserError(f"the variable {SIZE_VARIABLE} is '{text}': give a number of bytes, such as {DEFAULT_BYTES}")
    return int(text)


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
