"""The index of a split, and the chunks that it leads to.

The index has shards and chunks as columns of one safetensors file, ``train.index.safetensors``.

With n shards and c chunks, in order:

    shard_rows     [n]      u64  rows of each shard
    shard_sizes    [n]      u64  bytes of each tar
    shard_chunks   [n + 1]  u64  number of each shard's first chunk; the last is c
    chunk_offsets  [c]      u64  where a chunk's bytes begin in its tar
    chunk_lengths  [c]      u64  how many they are
    chunk_rows     [c]      u32
    shard_sha256   [n, 32]  u8
    chunk_xxh3     [c, 16]  u8   xxh3 (128 bit) of a chunk's bytes

The names of shards follow from split and number (``shard_format.shard_name``). A process maps the file, so that no
object in memory stands for a shard or chunk.
"""

import contextlib
import json
import mmap
import resource
import tarfile
from array import array
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from data_prep.contract.command_line import UserError
from data_prep.contract.shard_format import BLOCK, Geometry, chunk_hash, decode_arrays, member_header, shard_name

_U64, _U32, _U8 = np.dtype("<u8"), np.dtype("<u4"), np.dtype("u1")
# Wide types first, so that each column is aligned in the file.
COLUMNS: dict[str, tuple[np.dtype, tuple[int, ...]]] = {
    "shard_rows": (_U64, ()),
    "shard_sizes": (_U64, ()),
    "shard_chunks": (_U64, ()),
    "chunk_offsets": (_U64, ()),
    "chunk_lengths": (_U64, ()),
    "chunk_rows": (_U32, ()),
    "shard_sha256": (_U8, (32,)),
    "chunk_xxh3": (_U8, (16,)),
}
"""Column -> its type and what of its shape stands behind the number of shards or chunks."""


class ShardIndex:
    """What is known of the shards and chunks of a split before any of them is read."""

    def __init__(self, split: str, columns: Mapping[str, np.ndarray], path: Path | None = None) -> None:
        """Take the columns that ``index_of`` or ``map_index`` gives; ``path`` is the file that they are views of."""
        self.split = split
        self.path = path
        self.columns = dict(columns)
        self.shard_rows = columns["shard_rows"]
        """[n] rows of each shard."""
        self.shard_sizes = columns["shard_sizes"]
        """[n] bytes of each shard."""
        self.shard_chunks = columns["shard_chunks"]
        """[n + 1] number of each shard's first chunk."""
        self.chunk_rows = columns["chunk_rows"]
        """[c] rows of each chunk."""

    def __reduce__(self) -> tuple[Callable[..., "ShardIndex"], tuple[Any, ...]]:
        """A mapped index travels to another process as its path."""
        return (map_index, (self.split, self.path)) if self.path else (ShardIndex, (self.split, self.columns))

    @property
    def num_shards(self) -> int:
        """n."""
        return len(self.shard_rows)

    @property
    def num_chunks(self) -> int:
        """c."""
        return len(self.chunk_rows)

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return int(self.shard_sizes.sum())

    @property
    def counts(self) -> dict[str, int]:
        """What a manifest says of the split beside documents and tokens."""
        rows = int(self.shard_rows.sum())
        return {"rows": rows, "shards": self.num_shards, "chunks": self.num_chunks, "size": self.size}

    def name(self, shard: int) -> str:
        """File name of a shard."""
        return shard_name(self.split, shard)

    def file(self, shard: int) -> dict[str, Any]:
        """Name, size and sha256 of a shard."""
        sha256 = self.columns["shard_sha256"][shard].tobytes().hex()
        return {"name": self.name(shard), "size": int(self.shard_sizes[shard]), "sha256": sha256}

    def chunks(self, shard: int) -> range:
        """Numbers of a shard's chunks."""
        return range(int(self.shard_chunks[shard]), int(self.shard_chunks[shard + 1]))

    def shard_of(self, chunk: int) -> int:
        """Which shard a chunk stands in."""
        return int(np.searchsorted(self.shard_chunks, chunk, side="right")) - 1

    def place(self, chunk: int) -> tuple[int, int]:
        """(offset, length) of a chunk's bytes in its shard."""
        return int(self.columns["chunk_offsets"][chunk]), int(self.columns["chunk_lengths"][chunk])

    def chunk_hash(self, chunk: int) -> str:
        """xxh3 (128 bit) of a chunk's bytes, in hexadecimal."""
        return self.columns["chunk_xxh3"][chunk].tobytes().hex()

    def adds_up(self) -> bool:
        """Whether the shards' chunks are all chunks, and hold the shards' rows."""
        first = self.shard_chunks.astype(np.int64)
        if first[0] != 0 or first[-1] != self.num_chunks or (np.diff(first) < 0).any():
            return False
        rows_before = np.concatenate([[0], np.cumsum(self.chunk_rows, dtype=np.uint64)])
        return bool((np.diff(rows_before[first]) == self.shard_rows).all())


def index_of(split: str, entries: Iterable[Mapping[str, Any]]) -> ShardIndex:
    """The index of shards as ``write_shard`` describes them, in order; each entry is dropped as soon as it is read.

    Raises:
        ValueError: an entry is not that of the next shard.
    """
    wide = {name: array("Q") for name, (dtype, _) in COLUMNS.items() if dtype == _U64}
    hashes = {"shard_sha256": bytearray(), "chunk_xxh3": bytearray()}
    chunk_rows = array("I")
    for number, entry in enumerate(entries):
        if entry["name"] != shard_name(split, number):
            raise ValueError(f"{entry['name']} in place of {shard_name(split, number)}")
        wide["shard_rows"].append(entry["rows"])
        wide["shard_sizes"].append(entry["size"])
        wide["shard_chunks"].append(len(chunk_rows))
        hashes["shard_sha256"] += bytes.fromhex(entry["sha256"])
        for chunk in entry["chunks"]:
            wide["chunk_offsets"].append(chunk["offset"])
            wide["chunk_lengths"].append(chunk["length"])
            chunk_rows.append(chunk["rows"])
            hashes["chunk_xxh3"] += bytes.fromhex(chunk["xxh3"])
    wide["shard_chunks"].append(len(chunk_rows))
    buffers = {**wide, "chunk_rows": chunk_rows, **hashes}
    columns = {
        name: np.frombuffer(buffers[name], dtype=dtype).reshape(-1, *behind)
        for name, (dtype, behind) in COLUMNS.items()
    }
    return ShardIndex(split, columns)


def write_index(index: ShardIndex, stream: IO[bytes]) -> None:
    """Write the columns as a safetensors file, one after the other, so that no copy of them all is made."""
    header: dict[str, dict[str, Any]] = {}
    end = 0
    for name, (dtype, _) in COLUMNS.items():
        begin, end = end, end + index.columns[name].nbytes
        shape = list(index.columns[name].shape)
        header[name] = {"dtype": f"U{8 * dtype.itemsize}", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for name in COLUMNS:
        stream.write(np.ascontiguousarray(index.columns[name]).data)


def map_index(split: str, path: Path) -> ShardIndex:
    """The index that a file holds, as views of the mapped file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no index.
    """
    with path.open("rb") as stream:
        data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    columns = decode_arrays(memoryview(data))
    shards, chunks = (len(columns.get(name, ())) for name in ("shard_rows", "chunk_rows"))
    for name, (dtype, behind) in COLUMNS.items():
        count = chunks if name.startswith("chunk_") else shards + (name == "shard_chunks")
        if name not in columns or (columns[name].dtype, columns[name].shape) != (dtype, (count, *behind)):
            raise ValueError(f"its column {name} is missing, or not of the type or length that it should be")
    return ShardIndex(split, columns, path)


class RecentChunks:
    """The chunks that this process has read last, of all splits.

    Each keeps its shard mapped, and a map takes a file descriptor: so the number of chunks bounds the descriptors. The
    lanes of ``pipeline.data.order`` need about 1,100 chunks at a time where a chunk has 256 rows.
    """

    MOST = 2048
    """Chunks, of about 5 kB of memory each: arrays are views of the mapped files."""

    def __init__(self) -> None:
        # Threads use it without a lock: each operation is one step, and to read a chunk twice does no harm.
        self._chunks: OrderedDict[Hashable, dict[str, np.ndarray]] = OrderedDict()

    def get(self, key: Hashable) -> dict[str, np.ndarray] | None:
        """The arrays of a chunk, if it is among them."""
        arrays = self._chunks.get(key)
        if arrays is not None:
            with contextlib.suppress(KeyError):  # another thread has just dropped it
                self._chunks.move_to_end(key)
        return arrays

    def add(self, key: Hashable, arrays: dict[str, np.ndarray]) -> None:
        """Take a chunk in, and drop those that were used longest ago."""
        self._chunks[key] = arrays
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        # A quarter of the descriptors; the rest is for everything else in the process.
        most = self.MOST if allowed == resource.RLIM_INFINITY else min(self.MOST, 1 + allowed // 4)
        while len(self._chunks) > most:
            self._chunks.popitem(last=False)


RECENT_CHUNKS = RecentChunks()


def map_file(path: Path) -> mmap.mmap:
    """A shard, mapped into memory.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the shard {path}: {error}") from error


def read_chunk(
    data: mmap.mmap, index: ShardIndex, shard: int, chunk: int, geometry: Geometry, *, is_sound: bool = False
) -> dict[str, np.ndarray]:
    """The arrays of a chunk, as views of its mapped shard.

    Args:
        data: the shard.
        index: of its split.
        shard: its number.
        chunk: the chunk's number in the split.
        geometry: what shapes follow from.
        is_sound: its hash and its tar header have been checked before.

    Raises:
        ValueError: hash, tar header or schema do not match.
    """
    offset, length = index.place(chunk)
    view = memoryview(data)[offset : offset + length]
    if not is_sound:
        if chunk_hash(view) != index.chunk_hash(chunk):
            raise ValueError("its bytes are not those that were written (hash mismatch)")
        number = chunk - index.chunks(shard).start
        header = member_header(index.name(shard), number, length).tobuf(tarfile.USTAR_FORMAT)
        if data[offset - BLOCK : offset] != header:
            raise ValueError("its tar header is damaged")
    arrays = decode_arrays(view)
    geometry.check(arrays, int(index.chunk_rows[chunk]))
    return arrays
