"""The contract between preparation and training: what a shard folder holds.

A folder holds ``manifest.json``, ``tokenizer.json``, and tars of two splits, ``train`` and ``validation``. An index of
each split (``shard_index``) lists its tars and their chunks; in a folder of schema 1 the manifest does. Where the
manifest says so there are also ``rejects.jsonl.gz``, which lists what of the corpus is not in the rows, and
``inputs.jsonl``, which lists the files of the corpus. A tar is USTAR. Each member is one chunk of rows as a safetensors
file. Its fields, with R rows of a chunk, S ``seq_length``, K ``num_variants`` and P ``masked_per_row``:

    input_ids           [R, S]     original tokens, [CLS] ... [SEP], [PAD] behind
    lengths             [R]        real tokens
    masked_positions    [R, K, P]  sorted; the first num_masked count, the rest are 0
    replacement_ids     [R, K, P]  what the model's input holds there
    num_masked          [R, K]     slots in use
    sequence_ids        [R]        u64, stable and unique in the folder
    boundary_offsets    [R + 1]    u32; row i has boundary_positions[offsets[i]:offsets[i + 1]]
    boundary_positions  [ragged]   where a new document begins inside a row, after a [SEP]; where the pieces of a row
                                   are isolated from each other, that is at a [CLS]

The three fields of the masks are missing where the manifest has ``masks_stored`` false: readers draw them.
Token ids are u16 where the vocabulary allows, else u32; everything unmarked is u16.
"""

import dataclasses
import hashlib
import json
import math
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xxhash
from safetensors.numpy import save as save_safetensors

SCHEMA_VERSION = 2
"""What is written."""
READ_VERSIONS = (1, 2)
"""What is read."""
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
REJECTS = "rejects.jsonl.gz"
DOCUMENTS_FOLDER = "documents"
TEXT_FOLDER = "text"
INPUTS = "inputs.jsonl"
PINNED_FILES = {"rejects": REJECTS, "inputs": INPUTS}
"""What else a manifest may pin: key -> the file's name."""
SPLITS = ("train", "validation")
MASK_FIELDS = ("masked_positions", "replacement_ids", "num_masked")
"""Of a chunk, where masks are stored."""
CHUNK_EXTENSION = "rows.safetensors"
"""Of a chunk's member; what stands before it is the WebDataset key."""

_DTYPES = {"U8": np.dtype("u1"), "U16": np.dtype("<u2"), "U32": np.dtype("<u4"), "U64": np.dtype("<u8")}

BLOCK = tarfile.BLOCKSIZE

_OWNER = "narrowbert"
_MODE = 0o444


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometry:
    """The sizes that decide every shape and dtype of a chunk."""

    seq_length: int
    """S, tokens per row."""
    masked_per_row: int
    """P, mask slots of a row and variant."""
    num_variants: int
    """K, mask variants of each row."""
    vocab_size: int
    """One more than the largest token id."""
    masks_stored: bool = True
    """Whether chunks have the fields of the masks."""

    @property
    def token_dtype(self) -> np.dtype:
        """u16 where the vocabulary allows, else u32."""
        return np.dtype("<u2") if self.vocab_size <= 1 << 16 else np.dtype("<u4")

    def fields(self, rows: int, boundaries: int) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """Field -> dtype and shape of a chunk of ``rows`` rows that holds ``boundaries`` boundaries."""
        u16, slots = np.dtype("<u2"), (rows, self.num_variants, self.masked_per_row)
        masks = {
            "masked_positions": (u16, slots),
            "replacement_ids": (self.token_dtype, slots),
            "num_masked": (u16, slots[:2]),
        }
        return {
            "input_ids": (self.token_dtype, (rows, self.seq_length)),
            "lengths": (u16, (rows,)),
            **(masks if self.masks_stored else {}),
            "sequence_ids": (np.dtype("<u8"), (rows,)),
            "boundary_offsets": (np.dtype("<u4"), (rows + 1,)),
            "boundary_positions": (u16, (boundaries,)),
        }

    def check(self, arrays: Mapping[str, np.ndarray], rows: int) -> None:
        """Raise ValueError where ``arrays`` is not a chunk of ``rows`` rows of this geometry."""
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

    Only unsigned arrays are accepted.

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


def index_name(split: str) -> str:
    """File name of a split's index."""
    return f"{split}.index.safetensors"


def chunk_key(shard: str, chunk: int) -> str:
    """The WebDataset key of a chunk: its member's name without the extension."""
    return f"{shard.removesuffix('.tar')}-{chunk:04d}"


def chunk_hash(data: bytes | memoryview) -> str:
    """xxh3 (128 bit) of a chunk's bytes, in hexadecimal."""
    return xxhash.xxh3_128_hexdigest(data)


def file_sha256(path: str | Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def member_header(shard: str, chunk: int, length: int) -> tarfile.TarInfo:
    """A chunk's place in its tar, the same as webdataset.writer.TarWriter makes; importing that takes seconds."""
    member = tarfile.TarInfo(f"{chunk_key(shard, chunk)}.{CHUNK_EXTENSION}")
    member.size, member.mode, member.uname, member.gname = length, _MODE, _OWNER, _OWNER
    return member
