"""The chunks and masks of one split of a shard folder, as training reads them."""

import dataclasses
import mmap
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.contract.command_line import UserError
from data_prep.contract.fetching.chunk_cache import ChunkCache
from data_prep.contract.remote import RemoteFolder
from data_prep.contract.shard_format import MASK_FIELDS, Geometry, decode_arrays
from data_prep.contract.shard_index import RECENT_CHUNKS, ShardIndex, map_file, read_chunk

if TYPE_CHECKING:  # it brings tokenizers along
    from data_prep.contract.masking.settings import Masking

RESTORE = "restore the file from a copy or prepare again"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files:
    """Where the files of a shard folder are."""

    path: Path
    """The folder, or the cache of the remote one."""
    remote: RemoteFolder | None
    """Where files that are not in the cache come from."""

    def name(self, file: str) -> str:
        """What to call a file in messages."""
        return str(self.path / file) if self.remote is None else f"{self.remote}/{file}"

    def local(self, entry: Mapping[str, Any]) -> Path:
        """The path of the file of that name, sha256 and perhaps size on this machine, fetched if need be.

        Raises:
            UserError: it cannot be fetched.
        """
        if self.remote is None:
            return self.path / entry["name"]
        return self.remote.fetch(entry["name"], self.path, sha256=entry["sha256"], size=entry.get("size"))

    def problem(self, entry: Mapping[str, Any]) -> str | None:
        """What is wrong with presence and size of a file, if anything."""
        try:
            path = self.local(entry)
        except UserError as error:
            return str(error)
        if not path.is_file():
            return f"{path} is missing"
        size = path.stat().st_size
        return None if size == entry.get("size", size) else f"{path} has {size} bytes instead of {entry['size']}"

    def refuse(self, shard: str, problem: str) -> UserError:
        """The error for a shard whose content is damaged; a copy in the cache is deleted."""
        if self.remote is None:
            return UserError(f"shard {self.name(shard)}, {problem}; {RESTORE}")
        copy = self.path / shard
        copy.unlink(missing_ok=True)
        return UserError(
            f"shard {self.name(shard)}, {problem}; its copy {copy} has been deleted, so that the next start "
            "fetches it again"
        )


class ShardSplit:
    """The chunks of one split, in order. Build it through ``ShardFolder.split``."""

    def __init__(self, files: Files, index: ShardIndex, geometry: Geometry, masking: "Masking | None") -> None:
        self.name = index.split
        self.index = index
        """Its shards and chunks."""
        self.num_rows = index.counts["rows"]
        self.chunk_rows = index.chunk_rows.astype(np.int64)
        """[chunks] rows of each chunk."""
        self._files = files
        self._geometry = geometry
        self._masking = masking
        self._remote_chunks = None if files.remote is None else ChunkCache(files.remote, files.path, index)
        self._maps: weakref.WeakValueDictionary[int, mmap.mmap] = weakref.WeakValueDictionary()
        self._sound = bytearray(index.num_chunks)  # 1 where a chunk's hash has been checked

    def __reduce__(self) -> tuple[type["ShardSplit"], tuple[Any, ...]]:
        """Without the maps, so that another process opens its own."""
        return ShardSplit, (self._files, self.index, self._geometry, self._masking)

    def chunk(self, index: int) -> dict[str, np.ndarray]:
        """The fields of a chunk (see ``shard_format``): read-only views of the mapped file.

        The chunk's hash is checked at the first touch. Of a remote shard the chunk alone is fetched then, or the whole
        shard where the server sends no ranges.
        A shard stays mapped while one of its chunks is among those that this process has read last, or is in use.

        Raises:
            UserError: the bytes are not those that were written; names shard and chunk.
        """
        arrays = RECENT_CHUNKS.get((self, index))
        if arrays is None:
            arrays = self._read(index)
            RECENT_CHUNKS.add((self, index), arrays)
        return arrays

    def masks(self, chunks: np.ndarray, rows: np.ndarray, variants: np.ndarray) -> dict[str, np.ndarray]:
        """A masking of each of some rows: stored, or drawn now to the same bits.

        Args:
            chunks: [B] which chunk each row is in.
            rows: [B] where in the chunk.
            variants: [B] the mask variant of each.

        Returns:
            masked_positions [B, P], replacement_ids [B, P] and num_masked [B]; see ``shard_format``.

        Raises:
            UserError: as ``chunk``.
        """
        if self._masking is None:
            return self._gather(MASK_FIELDS, chunks, (rows, variants))
        from data_prep.contract.masking.masks import mask_variants

        # All rows at once: a draw for a single row takes as long as one for twenty.
        of_rows = self._gather(("input_ids", "lengths", "sequence_ids"), chunks, (rows,))
        masks = vars(mask_variants(**of_rows, masking=self._masking, variants=variants))
        return {name: masks[name][:, 0] for name in MASK_FIELDS}

    def _gather(
        self, names: Sequence[str], chunks: np.ndarray, places: tuple[np.ndarray, ...]
    ) -> dict[str, np.ndarray]:
        """[B, ...] of fields, each from a place in its chunk."""
        found: dict[str, np.ndarray] = {}
        for chunk in np.unique(chunks).tolist():
            here = np.flatnonzero(chunks == chunk)
            arrays, place = self.chunk(chunk), tuple(numbers[here] for numbers in places)
            for name in names:
                values = arrays[name][place]
                if name not in found:
                    found[name] = np.empty((len(chunks), *values.shape[1:]), values.dtype)
                found[name][here] = values
        return found

    def _read(self, chunk: int) -> dict[str, np.ndarray]:
        shard = self.index.shard_of(chunk)
        try:
            arrays = self._read_alone(chunk, shard)
            if arrays is None:
                arrays = self._read_from_shard(chunk, shard)
        except ValueError as error:
            number = chunk - self.index.chunks(shard).start
            raise self._files.refuse(self.index.name(shard), f"chunk {number}: {error}") from error
        self._sound[chunk] = 1
        return arrays

    def _read_from_shard(self, chunk: int, shard: int) -> dict[str, np.ndarray]:
        data = self._maps.get(shard)
        if data is None:
            data = self._maps[shard] = map_file(self._files.local(self.index.file(shard)))
        return read_chunk(data, self.index, shard, chunk, self._geometry, is_sound=bool(self._sound[chunk]))

    def _read_alone(self, chunk: int, shard: int) -> dict[str, np.ndarray] | None:
        """A chunk of a remote shard that is not here; None where only whole shards can be had."""
        if self._remote_chunks is None or (self._files.path / self.index.name(shard)).exists():
            return None
        content = self._remote_chunks.open(chunk)
        if content is None:
            return None
        arrays = decode_arrays(memoryview(content))
        self._geometry.check(arrays, int(self.chunk_rows[chunk]))
        return arrays
