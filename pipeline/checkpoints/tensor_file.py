"""A safetensors file written one tensor at a time, hashed on the way."""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from pipeline.checkpoints.format import SizeAndHash


class TensorFile:
    """A safetensors file of fp32 tensors, written and hashed one tensor at a time.

    The library wants all tensors of a file in memory at once, and its file read again for the hash.
    The format: 8 bytes, the length of the header (little-endian); the header, JSON, padded with spaces to
    a multiple of 8; the tensors.

    Args:
        path: to write.
        shapes: of the tensors, in the order in which they will come.

    Raises:
        OSError: from every method.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        header, offset = {}, 0
        for name, shape in shapes.items():
            end = offset + 4 * math.prod(shape)
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._hash = hashlib.sha256()
        self._size = 0
        self._file = path.open("wb", buffering=0)
        self._append(len(text).to_bytes(8, "little") + text)

    def write(self, tensor: torch.Tensor) -> None:
        """The next tensor of ``shapes``."""
        self._append(tensor.contiguous().view(-1).numpy().data.cast("B"))

    def _append(self, content: bytes | memoryview) -> None:
        self._hash.update(content)
        self._size += len(content)
        rest = memoryview(content)
        while rest:
            rest = rest[self._file.write(rest) :]

    def close(self) -> SizeAndHash:
        """Flush to disk; size and sha256 of the file."""
        with self._file:
            os.fsync(self._file.fileno())
        return {"size": self._size, "sha256": self._hash.hexdigest()}
