"""Every byte of one shard checked against its index, and the legality of its rows."""

import dataclasses
import functools
import hashlib
import mmap
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from data_prep.contract.command_line import UserError
from data_prep.contract.shard_format import BLOCK, CHUNK_EXTENSION, chunk_key, decode_arrays, member_header
from data_prep.contract.shard_index import ShardIndex, map_file, read_chunk
from data_prep.contract.shards import ShardFolder, open_folder
from data_prep.verification.rows import row_problems


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardCheck:
    """What was found in one shard."""

    problems: list[str]
    """One line per problem."""
    sequence_ids: np.ndarray
    """[rows] u64, of the chunks that could be read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenedFolder:
    """A folder and what it was opened by; another process opens it anew, once, in place of receiving it."""

    location: str
    """Folder or URL."""
    folder: ShardFolder
    """Opened."""

    def __reduce__(self) -> tuple[Callable[[str, str], "OpenedFolder"], tuple[str, str]]:
        return _opened_anew, (self.location, self.folder.root_hash)


@functools.lru_cache(maxsize=1)
def _opened_anew(location: str, _root_hash: str) -> OpenedFolder:
    return OpenedFolder(location=location, folder=open_folder(location))


def check_shard(opened: OpenedFolder, shard: tuple[str, int]) -> ShardCheck:
    """Check a shard, (split, number)."""
    sequence_ids: list[np.ndarray] = []
    problems = list(_problems(opened.folder, *shard, sequence_ids))
    return ShardCheck(problems=problems, sequence_ids=_joined(sequence_ids))


def sequence_ids_of(opened: OpenedFolder, shard: tuple[str, int]) -> np.ndarray:
    """[rows] u64, the sequence ids of a shard, as far as they can be read; nothing else of it is read or checked."""
    split, number = shard
    index = opened.folder.indexes[split]
    found: list[np.ndarray] = []
    try:
        data = map_file(opened.folder.files.local(index.file(number)))
    except UserError:  # the part that checks this shard says so
        return _joined(found)
    for offset, length in map(index.place, index.chunks(number)):
        try:
            found.append(np.array(decode_arrays(memoryview(data)[offset : offset + length])["sequence_ids"]))
        except (ValueError, KeyError):
            continue
    return _joined(found)


def _joined(sequence_ids: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype=np.uint64), *sequence_ids])


def _problems(folder: ShardFolder, split: str, shard: int, sequence_ids: list[np.ndarray]) -> Iterator[str]:
    """Problems of one shard; appends the sequence ids of its sound chunks."""
    index = folder.indexes[split]
    name = folder.files.name(index.name(shard))
    problem = folder.files.problem(index.file(shard))
    if problem:
        yield f"shard {problem}"
        return
    path = folder.path / index.name(shard)
    data = map_file(path)
    found: list[str] = []
    for number, chunk in enumerate(index.chunks(shard)):
        try:
            arrays = read_chunk(data, index, shard, chunk, folder.geometry)
        except ValueError as error:
            found.append(f"chunk {number}: {error}")
            continue
        sequence_ids.append(np.array(arrays["sequence_ids"]))
        for problem in row_problems(arrays, folder):
            yield f"shard {name}, chunk {number}: {problem}"
    if hashlib.sha256(data).hexdigest() != index.file(shard)["sha256"]:
        found += [problem for problem in _frame_problems(data, index, shard) if problem not in found]
        found = found or ["chunk 0: its sha256 is not the manifest's, though every chunk is sound"]
    else:
        found += _member_problems(path, index, shard)
    yield from (f"shard {name}, {problem}" for problem in found)


def _frame_problems(data: mmap.mmap, index: ShardIndex, shard: int) -> Iterator[str]:
    """Where the bytes between the chunks (tar headers, padding, the end) are not as they were written."""
    end = 0
    chunks = index.chunks(shard)
    for number, (offset, length) in enumerate(map(index.place, chunks)):
        header = member_header(index.name(shard), number, length).tobuf(tarfile.USTAR_FORMAT)
        if data[end:offset] != header:
            yield f"chunk {number}: its tar header is damaged"
        end = offset + -(-length // BLOCK) * BLOCK
        if any(data[offset + length : end]):
            yield f"chunk {number}: the padding behind it is damaged"
    if any(data[end:]):
        yield f"chunk {len(chunks) - 1}: the end of the tar behind it is damaged"


def _member_problems(path: Path, index: ShardIndex, shard: int) -> Iterator[str]:
    """A plain walk of the tar: only the expected members, plain files, where the index says."""
    try:
        with tarfile.open(path, "r:") as tar:
            members = tar.getmembers()
    except tarfile.TarError as error:
        yield f"chunk 0: not a tar: {error}"
        return
    chunks = index.chunks(shard)
    if len(members) != len(chunks):
        yield f"chunk {len(members)}: {len(members)} members instead of {len(chunks)}"
    for number, (member, chunk) in enumerate(zip(members, chunks, strict=False)):
        name = f"{chunk_key(index.name(shard), number)}.{CHUNK_EXTENSION}"
        if member.name != name or not member.isreg():
            yield f"chunk {number}: member {member.name!r} instead of the plain file {name!r}"
        if (member.offset_data, member.size) != index.place(chunk):
            yield f"chunk {number}: its place in the tar is not the manifest's"
