"""Masked positions and what stands there: token-level 80/10/10 (Devlin et al. 2019), k variants a row.

Randomness is counter-based: draw i of (seed, sequence id, variant) is a pure function of those four
numbers, so masks never depend on the order of rows, on chunks, shards or workers. The function is
SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014).
"""

from dataclasses import dataclass

import numpy as np

GAMMA = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)

MASK_BELOW = round(0.8 * 2**32)
"""32-bit draws below this put [MASK]"""
RANDOM_BELOW = round(0.9 * 2**32)
"""draws from MASK_BELOW up to this put a random token; the rest keep the original"""

POSITION_BITS = np.uint64(16)
REPLACEMENT_DRAWS = 1 << 16
"""Draw p decides whether position p (below this) is masked, draw p + this what then stands there."""


@dataclass(frozen=True, kw_only=True)
class Masks:
    """k maskings of n rows, P slots each."""

    masked_positions: np.ndarray
    """[n, k, P] u16; the first num_masked sorted and distinct, the rest 0"""
    replacement_ids: np.ndarray
    """[n, k, P] what the model's input holds there; in unused slots the row's token at position 0"""
    num_masked: np.ndarray
    """[n, k] u16, slots in use"""


def mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's output function, element by element, u64 -> u64. Overwrites `values`."""
    values ^= values >> np.uint64(30)
    values *= MIX_1
    values ^= values >> np.uint64(27)
    values *= MIX_2
    values ^= values >> np.uint64(31)
    return values


def stream_keys(seed: int, sequence_ids: np.ndarray, variant: int) -> np.ndarray:
    """[n] u64: the SplitMix64 state each row's draws of one variant start from."""
    start = mix(np.array([seed], dtype=np.uint64) + GAMMA)
    rows = mix((sequence_ids.astype(np.uint64) ^ start) + GAMMA)
    return mix((rows ^ mix(np.array([variant], dtype=np.uint64) + GAMMA)) + GAMMA)


def mask_rows(
    input_ids: np.ndarray,
    lengths: np.ndarray,
    sequence_ids: np.ndarray,
    *,
    masked_per_row: int,
    num_variants: int,
    seed: int,
    unmaskable_ids: np.ndarray,
    mask_id: int,
    ordinary_ids: np.ndarray,
) -> Masks:
    """Draw the masks of n rows.

    A full row gets `masked_per_row` positions, or all it has that can be masked; a short one
    P / L of its maskable tokens, rounded, at least one.

    Args:
        input_ids: [n, L] original tokens.
        lengths: [n] real tokens.
        sequence_ids: [n] u64, what the draws are keyed on.
        unmaskable_ids: ids never masked ([CLS], [SEP], [PAD]).
        ordinary_ids: ids that a random replacement is drawn from, uniformly.
    """
    num_rows, seq_length = input_ids.shape
    maskable = _maskable(input_ids, lengths, unmaskable_ids)
    counts = _counts(maskable.sum(axis=1), lengths, masked_per_row, seq_length)
    unused = np.arange(masked_per_row) >= counts[:, None]
    choices = ordinary_ids.astype(input_ids.dtype)
    shape = (num_rows, num_variants, masked_per_row)
    positions = np.empty(shape, dtype=np.uint16)
    replacements = np.empty(shape, dtype=input_ids.dtype)
    for variant in range(num_variants):  # one at a time: the draws then stay in the cache
        keys = stream_keys(seed, sequence_ids, variant)[:, None]
        chosen = _choose(keys, maskable, masked_per_row)
        chosen[unused] = seq_length  # sorts behind every real position
        chosen.sort(axis=1)
        chosen[unused] = 0
        original = np.take_along_axis(input_ids, chosen, axis=1)
        replaced = _replace(keys, chosen, original, mask_id, choices)
        positions[:, variant] = chosen
        replacements[:, variant] = np.where(unused, original, replaced)
    num_masked = np.repeat(counts[:, None], num_variants, axis=1).astype(np.uint16)
    return Masks(masked_positions=positions, replacement_ids=replacements, num_masked=num_masked)


def _maskable(input_ids: np.ndarray, lengths: np.ndarray, unmaskable_ids: np.ndarray) -> np.ndarray:
    maskable = np.arange(input_ids.shape[1]) < lengths[:, None]
    for unmaskable in unmaskable_ids:
        maskable &= input_ids != unmaskable
    return maskable


def _counts(maskable: np.ndarray, lengths: np.ndarray, masked_per_row: int, seq_length: int) -> np.ndarray:
    """[n] positions to mask: all of P in full rows, in short ones their share, never more than there are."""
    share = (2 * masked_per_row * maskable + seq_length) // (2 * seq_length)  # rounded, in whole numbers
    wanted = np.where(lengths == seq_length, masked_per_row, np.clip(share, 1, masked_per_row))
    return np.minimum(wanted, maskable)


def _choose(keys: np.ndarray, maskable: np.ndarray, masked_per_row: int) -> np.ndarray:
    """[n, P] positions with the smallest draws, unsorted, the smallest draw first.

    The position rides in the low bits of its own draw, so sorting values suffices (no argsort). Where
    fewer than P positions are maskable, the surplus entries are positions that must not be used.
    """
    counters = np.arange(1, maskable.shape[1] + 1, dtype=np.uint64) * GAMMA
    draws = mix(keys + counters)
    draws >>= POSITION_BITS
    draws[~maskable] = (1 << 48) - 1
    draws <<= POSITION_BITS
    draws |= np.arange(maskable.shape[1], dtype=np.uint64)
    draws.sort(axis=1)
    return (draws[:, :masked_per_row] & np.uint64(0xFFFF)).astype(np.int64)


def _replace(
    keys: np.ndarray, positions: np.ndarray, original: np.ndarray, mask_id: int, choices: np.ndarray
) -> np.ndarray:
    """[n, P] what stands at the masked positions: 80% [MASK], 10% a random token, 10% the original."""
    draws = mix(keys + (positions.astype(np.uint64) + np.uint64(REPLACEMENT_DRAWS + 1)) * GAMMA)
    action = draws >> np.uint64(32)
    # The low half picks a token by multiply-and-shift: unequal by at most len(choices) in 2^32.
    picked = ((draws & np.uint64(0xFFFFFFFF)) * np.uint64(len(choices))) >> np.uint64(32)
    replaced = np.where(action < RANDOM_BELOW, choices[picked], original)
    return np.where(action < MASK_BELOW, original.dtype.type(mask_id), replaced)
