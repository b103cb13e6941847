"""Columns of numbers, bucket by bucket, in memory while they are few and in files of a scratch folder beyond that."""

import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np

MEMORY_BYTES = 1 << 27

PIECE_BYTES = 1 << 9
"""What a piece takes besides its numbers: small ones would fill the memory uncounted."""


class Spill:
    """Takes pieces for any bucket in any order, gives back each bucket whole: the second level of a shuffle.

    No file stays open, so any number of buckets needs no more descriptors than one.
    """

    def __init__(self, folder: Path, dtypes: Mapping[str, np.dtype], memory_bytes: int = MEMORY_BYTES) -> None:
        """Spill into ``folder``, which is made when it is needed and removed with the ``with`` block.

        Args:
            folder: scratch, of this process alone.
            dtypes: column -> dtype of its numbers; a row of several is a structured dtype or a sub-array.
            memory_bytes: what is kept in memory before it is written out.
        """
        self._folder = folder
        self._dtypes = dict(dtypes)
        self._memory_bytes = memory_bytes
        self._pieces: dict[int, list[dict[str, np.ndarray]]] = defaultdict(list)
        self._held = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, bucket: int, **columns: np.ndarray) -> None:
        """A piece of a bucket, one array for each column; the arrays are kept, so the caller may not change them."""
        self._pieces[bucket].append(columns)
        self._held += _size(columns)
        if self._held > self._memory_bytes:
            self._write_out()

    def take(self, bucket: int) -> dict[str, np.ndarray]:
        """All that a bucket got, column by column, in the order in which it came; the bucket is empty then."""
        pieces = self._pieces.pop(bucket, [])
        self._held -= sum(map(_size, pieces))
        whole: dict[str, np.ndarray] = {}
        for name, dtype in self._dtypes.items():
            path = self._path(bucket, name)
            if path.exists():
                self._append(bucket, name, pieces)
                whole[name] = np.fromfile(path, dtype=dtype)
                path.unlink()
            else:
                whole[name] = np.concatenate([np.empty(0, dtype), *(piece[name] for piece in pieces)])
        return whole

    def _append(self, bucket: int, name: str, pieces: Sequence[Mapping[str, np.ndarray]]) -> None:
        with self._path(bucket, name).open("ab") as stream:
            stream.writelines(np.ascontiguousarray(piece[name]).view(np.uint8).data for piece in pieces)

    def _write_out(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for bucket, pieces in self._pieces.items():
            for name in self._dtypes:
                self._append(bucket, name, pieces)
        self._pieces.clear()
        self._held = 0

    def _path(self, bucket: int, name: str) -> Path:
        return self._folder / f"{bucket:06d}.{name}"


def _size(columns: Mapping[str, np.ndarray]) -> int:
    return PIECE_BYTES + sum(column.nbytes for column in columns.values())
