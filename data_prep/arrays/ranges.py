"""Ranges of numbers, and equal shares of the values of a hash."""

import numpy as np


def ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The numbers start, start + 1, ... of every range, one range after the other: [sum of counts] i64."""
    starts, counts = np.asarray(starts, dtype=np.int64), np.asarray(counts, dtype=np.int64)
    ends = np.cumsum(counts)
    return np.repeat(starts - ends + counts, counts) + np.arange(ends[-1] if len(ends) else 0)


def hash_limits(count: int) -> np.ndarray:
    """[count] u64, the first value of each of ``count`` equal shares of the values of a 64 bit hash."""
    return np.array([number * 2**64 // count for number in range(count)], dtype=np.uint64)


def cut(keys: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Where rising keys pass from one share to the next: [shares + 1] i64, the last one their number.

    Args:
        keys: [n] u64, rising, none below limits[0].
        limits: [shares] u64, the first value of each share.
    """
    return np.append(np.searchsorted(keys, limits, side="left"), len(keys))
