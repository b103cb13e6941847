"""What malloc does with freed memory."""

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> None:
    """Keep freed activations instead of returning them to the kernel after every use.

    Their page faults cost about a tenth of a CPU step (benchmarks/cpu_choices.py). glibc's malloc alone is told, and
    only where no MALLOC_ variable has told it already.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # another libc has none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_INT)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)
