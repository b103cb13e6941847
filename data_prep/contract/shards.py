"""THE contract between preparation and training: what a shard folder holds, written and read here alone.

A folder holds `manifest.json`, `tokenizer.json`, tars of two splits, `train` and `validation`, and, where the
manifest says so, `rejects.jsonl.gz`: what of the corpus is not in the rows. A tar is USTAR; each member is one chunk
of rows as a safetensors file. Legend of the shapes: n rows of a chunk, L seq_length, k mask variants, P masked_per_row.

    input_ids           [n, L]     original tokens, [CLS] ... [SEP], [PAD] behind
    lengths             [n]        real tokens
    masked_positions    [n, k, P]  sorted; the first num_masked count, the rest are 0
    replacement_ids     [n, k, P]  what the model's input holds there
    num_masked          [n, k]     slots in use
    sequence_ids        [n]        u64, stable and unique in the folder
    boundary_offsets    [n + 1]    u32; row i has boundary_positions[offsets[i]:offsets[i + 1]]
    boundary_positions  [ragged]   where a new document begins inside a row, after a [SEP]; where the pieces of a row
                                   are isolated from each other, that is at a [CLS]

Token ids are u16 where the vocabulary allows, else u32; everything unmarked is u16.
"""

import hashlib
import json
import math
import mmap
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from safetensors.numpy import save as save_safetensors

from data_prep.contract.command_line import UserError
from data_prep.contract.remote import RemoteFolder, is_url

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
REJECTS = "rejects.jsonl.gz"
SPLITS = ("train", "validation")
CHUNK_EXTENSION = "rows.safetensors"
"""Of a chunk's member; what stands before it is the WebDataset key"""

_SHARD_NAME = re.compile(r"(train|validation)-\d{5,}\.tar")
_DTYPES = {"U16": np.dtype("<u2"), "U32": np.dtype("<u4"), "U64": np.dtype("<u8")}
BLOCK = tarfile.BLOCKSIZE
_RESTORE = "restore the file from a copy or prepare again"


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The sizes that decide every shape and dtype of a chunk."""

    seq_length: int
    """L, tokens a row"""
    masked_per_row: int
    """P, mask slots of a row and variant"""
    num_variants: int
    """k, maskings of each row"""
    vocab_size: int
    """One more than the largest token id"""

    @property
    def token_dtype(self) -> np.dtype:
        """u16 where the vocabulary allows, else u32."""
        return np.dtype("<u2") if self.vocab_size <= 1 << 16 else np.dtype("<u4")

    def fields(self, rows: int, boundaries: int) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """Field -> dtype and shape of a chunk of `rows` rows that holds `boundaries` boundaries."""
        u16, slots = np.dtype("<u2"), (rows, self.num_variants, self.masked_per_row)
        return {
            "input_ids": (self.token_dtype, (rows, self.seq_length)),
            "lengths": (u16, (rows,)),
            "masked_positions": (u16, slots),
            "replacement_ids": (self.token_dtype, slots),
            "num_masked": (u16, slots[:2]),
            "sequence_ids": (np.dtype("<u8"), (rows,)),
            "boundary_offsets": (np.dtype("<u4"), (rows + 1,)),
            "boundary_positions": (u16, (boundaries,)),
        }

    def check(self, arrays: Mapping[str, np.ndarray], rows: int) -> None:
        """Raise ValueError where `arrays` is not a chunk of `rows` rows of this geometry."""
        boundaries = arrays["boundary_positions"].size if "boundary_positions" in arrays else 0
        expected = self.fields(rows, boundaries)
        if set(arrays) != set(expected):
            raise ValueError(f"fields {sorted(arrays)} instead of {sorted(expected)}")
        for name, (dtype, shape) in expected.items():
            if arrays[name].dtype != dtype or arrays[name].shape != shape:
                found = f"{arrays[name].dtype}{list(arrays[name].shape)}"
                raise ValueError(f"{name} is {found} instead of {dtype}{list(shape)}")


def encode_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Named arrays as one safetensors file."""
    return save_safetensors({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def decode_arrays(buffer: memoryview) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, read-only and without a copy.

    Only unsigned 16, 32 and 64 bit arrays are accepted.

    Raises:
        ValueError: not a well-formed safetensors file.
    """
    if len(buffer) < 8:
        raise ValueError("too short for a safetensors file")
    start = 8 + int.from_bytes(buffer[:8], "little")
    if start > len(buffer):
        raise ValueError("the safetensors header runs past the end")
    try:
        header = json.loads(bytes(buffer[8:start]))
        header.pop("__metadata__", None)
        entries = [(n, e["dtype"], tuple(e["shape"]), *e["data_offsets"]) for n, e in header.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the safetensors header is damaged: {error}") from error
    arrays = {}
    for name, dtype_name, shape, begin, end in entries:
        dtype = _DTYPES.get(dtype_name)
        if dtype is None:
            raise ValueError(f"field {name!r} has the type {dtype_name}, which no chunk holds")
        size = math.prod(shape) * dtype.itemsize
        if not 0 <= begin <= end <= len(buffer) - start or end - begin != size:
            raise ValueError(f"field {name!r} does not fit into its file")
        data = np.frombuffer(buffer[start + begin : start + end], dtype=dtype).reshape(shape)
        data.flags.writeable = False
        arrays[name] = data
    return arrays


def shard_name(split: str, index: int) -> str:
    """File name of a split's shard."""
    return f"{split}-{index:05d}.tar"


def chunk_key(shard: str, chunk: int) -> str:
    return f"{shard.removesuffix('.tar')}-{chunk:04d}"


def compute_root_hash(manifest: Mapping[str, Any]) -> str:
    """sha256 over the canonical JSON of everything but the root hash itself."""
    content = {key: value for key, value in manifest.items() if key != "root_hash"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    return (json.dumps(manifest, sort_keys=True, indent=1) + "\n").encode()


def chunk_hash(data: bytes | memoryview) -> str:
    return xxhash.xxh3_128_hexdigest(data)


def file_sha256(path: str | Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Files:
    """Where the files of a shard folder are."""

    path: Path
    """The folder, or the cache of the remote one"""
    remote: RemoteFolder | None
    """Where files that are not in the cache come from"""

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

    def refuse(self, shard: Mapping[str, Any], problem: str) -> UserError:
        """The error for a shard whose content is damaged; a copy in the cache is deleted."""
        if self.remote is None:
            return UserError(f"shard {self.name(shard['name'])}, {problem}; {_RESTORE}")
        copy = self.path / shard["name"]
        copy.unlink(missing_ok=True)
        return UserError(
            f"shard {self.name(shard['name'])}, {problem}; its copy {copy} has been deleted, so that the next start "
            "fetches it again"
        )


class ShardSplit:
    """The chunks of one split, in order. Build it through `ShardFolder.split`."""

    def __init__(self, files: _Files, name: str, entry: Mapping[str, Any], geometry: Geometry) -> None:
        self.name = name
        self.num_rows: int = entry["rows"]
        self.chunk_rows = np.array([c["rows"] for s in entry["shards"] for c in s["chunks"]], dtype=np.int64)
        """[chunks] rows of each chunk"""
        self._files = files
        self._geometry = geometry
        self._shards = entry["shards"]
        self._places = [(s, c) for s, shard in enumerate(self._shards) for c in range(len(shard["chunks"]))]
        self._maps: dict[int, mmap.mmap] = {}
        self._arrays: dict[int, dict[str, np.ndarray]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the maps, so that a spawned process gets a split that opens its own."""
        return {**self.__dict__, "_maps": {}, "_arrays": {}}

    def chunk(self, index: int) -> dict[str, np.ndarray]:
        """The fields of a chunk (table at the top of this file): read-only views of the mapped file.

        The chunk's hash is checked at the first touch. A remote shard is fetched at the first touch of a chunk of it.

        Raises:
            UserError: the bytes are not those that were written; names shard and chunk.
        """
        if index not in self._arrays:
            shard, number = self._places[index]
            try:
                self._arrays[index] = read_chunk(self._map(shard), self._shards[shard], number, self._geometry)
            except ValueError as error:
                raise self._files.refuse(self._shards[shard], f"chunk {number}: {error}") from error
        return self._arrays[index]

    def _map(self, shard: int) -> mmap.mmap:
        if shard not in self._maps:
            self._maps[shard] = map_file(self._files.local(self._shards[shard]))
        return self._maps[shard]


@dataclass(frozen=True, kw_only=True)
class ShardFolder:
    """A shard folder whose manifest, tokenizer and file sizes have been checked; see `open_shards`."""

    path: Path
    """The folder; of a remote one the cache"""
    manifest: dict[str, Any]
    """manifest.json"""
    remote: RemoteFolder | None = None
    """Where it comes from, if not from this machine"""

    @property
    def location(self) -> str:
        """What `open_shards` opens this folder by, from anywhere: the absolute path, or the URL."""
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
        """L, tokens a row."""
        return self.manifest["seq_length"]

    @property
    def masked_per_row(self) -> int:
        """P, mask slots of a row and variant."""
        return self.manifest["masked_per_row"]

    @property
    def num_variants(self) -> int:
        """k, maskings of each row."""
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
        """The split `train` or `validation`.

        Raises:
            UserError: no such split.
        """
        if name not in self.manifest["splits"]:
            raise UserError(f"{self.path} has no split '{name}': it has {', '.join(SPLITS)}")
        return ShardSplit(self.files, name, self.manifest["splits"][name], self.geometry)


def open_shards(folder: str | Path) -> ShardFolder:
    """Open a shard folder: checks schema version, root hash, tokenizer, counts, and every shard's size.

    Of a folder behind a URL the manifest is read and the tokenizer is fetched; a shard is fetched into the cache
    (~/.cache/narrowbert, or the variable NARROWBERT_CACHE) when it is first touched, and checked then.

    Raises:
        UserError: whatever does not match, by file name.
    """
    opened = open_folder(folder)
    problems = [*count_problems(opened)]
    if opened.remote is None:
        found = map(opened.files.problem, all_shards(opened.manifest))
        problems += [*tokenizer_problems(opened), *(f"shard {problem}" for problem in found if problem)]
    else:
        opened.files.local(_tokenizer_entry(opened))
    if problems:
        raise UserError(f"{problems[0]}; {_RESTORE}")
    return opened


def open_folder(folder: str | Path) -> ShardFolder:
    """The folder with its manifest checked, nothing else."""
    if not is_url(folder):
        return ShardFolder(path=Path(folder), manifest=read_manifest(Path(folder)))
    remote = RemoteFolder(url=str(folder))
    remote.check()
    manifest = _parse_manifest(remote.read(MANIFEST), f"{remote}/{MANIFEST}")
    return ShardFolder(path=remote.cache(manifest["root_hash"]), manifest=manifest, remote=remote)


def _tokenizer_entry(folder: ShardFolder) -> dict[str, Any]:
    return {"name": TOKENIZER, "sha256": folder.manifest["tokenizer"]["sha256"]}


def tokenizer_problems(folder: ShardFolder) -> Iterator[str]:
    entry = _tokenizer_entry(folder)
    problem = folder.files.problem(entry)
    if problem:
        yield problem
    elif file_sha256(folder.tokenizer_path) != entry["sha256"]:
        yield f"{folder.tokenizer_path} is not the tokenizer the shards were made with"


def count_problems(folder: ShardFolder) -> Iterator[str]:
    for name, split in folder.manifest["splits"].items():
        rows = [sum(chunk["rows"] for chunk in shard["chunks"]) for shard in split["shards"]]
        if rows != [shard["rows"] for shard in split["shards"]] or sum(rows) != split["rows"]:
            yield f"{folder.files.name(MANIFEST)}: the row counts of split {name} do not add up"


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check `manifest.json` alone.

    Raises:
        UserError: no folder, no manifest, a schema of another version, or a damaged manifest.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise UserError(f"no shard folder {folder}: make one with `narrowbert-prep shards --output {folder}`")
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} holds no {MANIFEST}, so it is no shard folder: make one with `narrowbert-prep shards`"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return _parse_manifest(content, str(path))


def _parse_manifest(content: bytes, path: str) -> dict[str, Any]:
    try:
        manifest = json.loads(content)
    except ValueError as error:
        raise UserError(f"{path} is damaged (not JSON): restore it or prepare again") from error
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}: prepare the shards again"
        )
    # Comparing the bytes as well refuses damage that JSON would not show, as in white space.
    if manifest.get("root_hash") != compute_root_hash(manifest) or content != manifest_bytes(manifest):
        raise UserError(f"{path} is damaged (its root hash does not match): restore it or prepare again")
    bad = [s["name"] for s in all_shards(manifest) if not _SHARD_NAME.fullmatch(s["name"])]
    if bad:
        raise UserError(f"{path} names {bad[0]!r}, which is no shard's name")
    if manifest.get("rejects", {}).get("name", REJECTS) != REJECTS:
        raise UserError(f"{path} names {manifest['rejects']['name']!r} in place of {REJECTS}")
    return manifest


def all_shards(manifest: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for split in manifest["splits"].values():
        yield from split["shards"]


def map_file(path: Path) -> mmap.mmap:
    try:
        with open(path, "rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the shard {path}: {error}") from error


def read_chunk(data: mmap.mmap, shard: Mapping[str, Any], number: int, geometry: Geometry) -> dict[str, np.ndarray]:
    """A chunk's arrays. Raises ValueError where tar header, hash or schema do not match."""
    entry = shard["chunks"][number]
    view = memoryview(data)[entry["offset"] : entry["offset"] + entry["length"]]
    if chunk_hash(view) != entry["xxh3"]:
        raise ValueError("its bytes are not those that were written (hash mismatch)")
    header = member_header(shard["name"], number, entry["length"]).tobuf(tarfile.USTAR_FORMAT)
    if data[entry["offset"] - BLOCK : entry["offset"]] != header:
        raise ValueError("its tar header is damaged")
    arrays = decode_arrays(view)
    geometry.check(arrays, entry["rows"])
    return arrays


_OWNER = "narrowbert"


_MODE = 0o444


def member_header(shard: str, chunk: int, length: int) -> tarfile.TarInfo:
    """A chunk's place in its tar, the same as webdataset.writer.TarWriter makes; importing that takes seconds."""
    member = tarfile.TarInfo(f"{chunk_key(shard, chunk)}.{CHUNK_EXTENSION}")
    member.size, member.mode, member.uname, member.gname = length, _MODE, _OWNER, _OWNER
    return member
