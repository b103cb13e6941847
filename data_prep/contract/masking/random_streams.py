"""Counter-based random numbers: a stream is a function of its key, whoever draws from it."""

import numpy as np

GAMMA = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)


def mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's output function, element by element, u64 -> u64. Overwrites ``values``."""
    values ^= values >> np.uint64(30)
    values *= MIX_1
    values ^= values >> np.uint64(27)
    values *= MIX_2
    values ^= values >> np.uint64(31)
    return values


def stream_keys(seed: int, sequence_ids: np.ndarray, variant: int | np.ndarray) -> np.ndarray:
    """[R] u64: the SplitMix64 state each row's draws of a variant, the same of all rows or [R], start from."""
    start = mix(np.array([seed], dtype=np.uint64) + GAMMA)
    rows = mix((sequence_ids.astype(np.uint64) ^ start) + GAMMA)
    return mix((rows ^ mix(np.array(variant, dtype=np.uint64).reshape(-1) + GAMMA)) + GAMMA)
