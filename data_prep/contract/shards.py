"""A shard folder as training sees it: opened, checked, and read chunk by chunk.

``shard_format`` says what a folder holds, ``manifest`` and ``shard_index`` read its lists, ``verification`` checks
every byte of it.
"""

import dataclasses
import mmap
import os
import stat
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.contract.command_line import UserError
from data_prep.contract.manifest import parse_manifest, read_manifest, without_shards
from data_prep.contract.remote import RemoteFolder, is_url
from data_prep.contract.shard_format import (
    MANIFEST,
    SPLITS,
    TOKENIZER,
    Geometry,
    file_sha256,
)
from data_prep.contract.shard_index import RECENT_CHUNKS, ShardIndex, map_file, map_index, read_chunk

_RESTORE = "restore the file from a copy or prepare again"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Files:
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
            return UserError(f"shard {self.name(shard)}, {problem}; {_RESTORE}")
        copy = self.path / shard
        copy.unlink(missing_ok=True)
        return UserError(
            f"shard {self.name(shard)}, {problem}; its copy {copy} has been deleted, so that the next start "
            "fetches it again"
        )


class ShardSplit:
    """The chunks of one split, in order. Build it through ``ShardFolder.split``."""

    def __init__(self, files: _Files, index: ShardIndex, geometry: Geometry) -> None:
        self.name = index.split
        self.index = index
        """Its shards and chunks."""
        self.num_rows = index.counts["rows"]
        self.chunk_rows = index.chunk_rows.astype(np.int64)
        """[chunks] rows of each chunk."""
        self._files = files
        self._geometry = geometry
        self._maps: weakref.WeakValueDictionary[int, mmap.mmap] = weakref.WeakValueDictionary()
        self._sound = bytearray(index.num_chunks)  # 1 where a chunk's hash has been checked

    def __reduce__(self) -> tuple[type["ShardSplit"], tuple[Any, ...]]:
        """Without the maps, so that another process opens its own."""
        return ShardSplit, (self._files, self.index, self._geometry)

    def chunk(self, index: int) -> dict[str, np.ndarray]:
        """The fields of a chunk (see ``shard_format``): read-only views of the mapped file.

        The chunk's hash is checked at the first touch. A remote shard is fetched at the first touch of a chunk of it.
        A shard stays mapped while one of its chunks is among those that this process has read last, or is in use.

        Raises:
            UserError: the bytes are not those that were written; names shard and chunk.
        """
        arrays = RECENT_CHUNKS.get((self, index))
        if arrays is None:
            arrays = self._read(index)
            RECENT_CHUNKS.add((self, index), arrays)
        return arrays

    def _read(self, chunk: int) -> dict[str, np.ndarray]:
        shard = self.index.shard_of(chunk)
        data = self._maps.get(shard)
        if data is None:
            data = self._maps[shard] = map_file(self._files.local(self.index.file(shard)))
        try:
            arrays = read_chunk(data, self.index, shard, chunk, self._geometry, is_sound=bool(self._sound[chunk]))
        except ValueError as error:
            number = chunk - self.index.chunks(shard).start
            raise self._files.refuse(self.index.name(shard), f"chunk {number}: {error}") from error
        self._sound[chunk] = 1
        return arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardFolder:
    """A shard folder whose manifest, tokenizer and file sizes have been checked; see ``open_shards``."""

    path: Path
    """The folder; of a remote one the cache."""
    manifest: dict[str, Any]
    """manifest.json; of a folder of schema 1 without its list of shards, which ``indexes`` holds."""
    indexes: Mapping[str, ShardIndex]
    """Split -> its shards and chunks."""
    remote: RemoteFolder | None = None
    """Where it comes from, if not from this machine."""

    @property
    def location(self) -> str:
        """What ``open_shards`` opens this folder by, from anywhere: the absolute path, or the URL."""
        return str(self.path.resolve()) if self.remote is None else self.remote.url

    @property
    def files(self) -> _Files:
        """Where its files are."""
        return _Files(path=self.path, remote=self.remote)

    @property
    def root_hash(self) -> str:
        """sha256 over everything the manifest pins."""
        return self.manifest["root_hash"]

    @property
    def seq_length(self) -> int:
        """S, tokens per row."""
        return self.manifest["seq_length"]

    @property
    def masked_per_row(self) -> int:
        """P, mask slots of a row and variant."""
        return self.manifest["masked_per_row"]

    @property
    def num_variants(self) -> int:
        """K, mask variants of each row."""
        return self.manifest["num_variants"]

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id of the tokenizer."""
        return self.manifest["vocab_size"]

    @property
    def special_ids(self) -> dict[str, int]:
        """{"pad": id, "unk": id, "cls": id, "sep": id, "mask": id}."""
        return self.manifest["special_ids"]

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer.json the rows were made with."""
        return self.path / TOKENIZER

    @property
    def geometry(self) -> Geometry:
        """The sizes that decide every shape of a chunk."""
        return Geometry(
            seq_length=self.seq_length,
            masked_per_row=self.masked_per_row,
            num_variants=self.num_variants,
            vocab_size=self.vocab_size,
        )

    def split(self, name: str) -> ShardSplit:
        """The split ``train`` or ``validation``.

        Raises:
            UserError: no such split.
        """
        if name not in self.indexes:
            raise UserError(f"{self.path} has no split '{name}': it has {', '.join(SPLITS)}")
        return ShardSplit(self.files, self.indexes[name], self.geometry)


def open_shards(folder: str | Path) -> ShardFolder:
    """Open a shard folder: checks schema version, root hash, tokenizer, counts, and every shard's size.

    Of a folder behind a URL the manifest is read and the tokenizer is fetched; a shard is fetched into the cache
    (~/.cache/narrowbert, or the variable NARROWBERT_CACHE) when it is first touched, and checked then.

    Raises:
        UserError: whatever does not match, by file name.

    Example:
        >>> import narrowbert
        >>> shards = narrowbert.open_shards("shards/mine")
        >>> shards.split("train").chunk(0)["input_ids"].shape[1] == shards.seq_length
        True
    """
    opened = open_folder(folder)
    problems = [*count_problems(opened)]
    if opened.remote is None:
        problems += [*tokenizer_problems(opened), *(f"shard {problem}" for problem in _size_problems(opened))]
    else:
        opened.files.local(_tokenizer_entry(opened))
    if problems:
        raise UserError(f"{problems[0]}; {_RESTORE}")
    return opened


def open_folder(folder: str | Path) -> ShardFolder:
    """The folder with its manifest and indexes checked, nothing else.

    Raises:
        UserError: one of them is missing or damaged.
    """
    if is_url(folder):
        remote = RemoteFolder(url=str(folder))
        remote.check()
        manifest = parse_manifest(remote.read(MANIFEST), f"{remote}/{MANIFEST}")
        files = _Files(path=remote.cache(manifest["root_hash"]), remote=remote)
    else:
        manifest, files = read_manifest(Path(folder)), _Files(path=Path(folder), remote=None)
    if manifest["schema_version"] == 1:
        manifest, indexes = without_shards(manifest)
    else:
        indexes = {name: _open_index(files, name, split["index"]) for name, split in manifest["splits"].items()}
    return ShardFolder(path=files.path, remote=files.remote, manifest=manifest, indexes=indexes)


def _open_index(files: _Files, split: str, entry: Mapping[str, Any]) -> ShardIndex:
    path = files.path / entry["name"]
    if files.remote is not None:  # without the size a copy that is there is checked by its sha256
        files.local({"name": entry["name"], "sha256": entry["sha256"]})
    elif problem := files.problem(entry):
        raise UserError(f"{problem}; {_RESTORE}")
    try:
        if files.remote is None and file_sha256(path) != entry["sha256"]:
            raise UserError(f"{path} is damaged (its sha256 is not the manifest's); {_RESTORE}")
        return map_index(split, path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _tokenizer_entry(folder: ShardFolder) -> dict[str, Any]:
    return {"name": TOKENIZER, "sha256": folder.manifest["tokenizer"]["sha256"]}


def tokenizer_problems(folder: ShardFolder) -> Iterator[str]:
    """What is wrong with the folder's tokenizer.json, if anything."""
    entry = _tokenizer_entry(folder)
    problem = folder.files.problem(entry)
    if problem:
        yield problem
    elif file_sha256(folder.tokenizer_path) != entry["sha256"]:
        yield f"{folder.tokenizer_path} is not the tokenizer the shards were made with"


def _size_problems(folder: ShardFolder) -> Iterator[str]:
    """Shards that are missing or have another size."""
    # Listing the folder first spares a network file system one question for every file.
    with os.scandir(folder.path) as entries:
        found = {entry.name: _file_size(entry) for entry in entries if entry.name.endswith(".tar")}
    for index in folder.indexes.values():
        for shard, size in enumerate(index.shard_sizes.tolist()):
            there = found.get(index.name(shard))
            if there is None:
                yield f"{folder.path / index.name(shard)} is missing"
            elif there != size:
                yield f"{folder.path / index.name(shard)} has {there} bytes instead of {size}"


def _file_size(entry: os.DirEntry[str]) -> int | None:
    """Bytes of what a name leads to; None where that is no file."""
    try:
        status = entry.stat()
    except OSError:  # a link to nothing
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def count_problems(folder: ShardFolder) -> Iterator[str]:
    """Splits whose counts do not add up."""
    for name, split in folder.manifest["splits"].items():
        index = folder.indexes[name]
        if not index.adds_up() or any(split[key] != count for key, count in index.counts.items()):
            yield f"{folder.files.name(MANIFEST)}: the row counts of split {name} do not add up"
