"""A file of numbers, mapped into memory."""

import mmap
from pathlib import Path

import numpy as np


class MappedArray:
    """A file of numbers, mapped into memory."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self._pages: mmap.mmap | None = None
        self.array = np.empty(0, dtype=dtype)
        """[numbers] read-only."""
        if path.stat().st_size:  # an empty file cannot be mapped
            with path.open("rb") as stream:
                self._pages = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            self.array = np.frombuffer(self._pages, dtype=dtype)

    def forget_pages(self) -> None:
        """Stop counting what was read as this process's memory; the next look reads it from the file again."""
        if self._pages is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._pages.madvise(mmap.MADV_DONTNEED)
