"""Masked positions and what stands there: K variants of each row, drawn by token, word, span or n-gram.

token  positions one by one (Devlin et al. 2019, section 3.1)
word   whole words, the "Whole Word Masking" of google-research/bert
span   runs of whole words of geometric length (SpanBERT, Joshi et al. 2020, section 3.1)
ngram  runs of n whole words, n with probability proportional to 1/n (Megatron-LM's create_masked_lm_predictions)

Randomness is counter-based: draw i of (seed, sequence id, variant) is a pure function of those four
numbers, so masks never depend on the order of rows, on chunks, shards or workers. The function is
SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014).

Shapes: R rows of a chunk, S tokens per row, K variants of a row, P slots for masked tokens, W words of a row.
"""

import dataclasses
import itertools

import numpy as np

from data_prep.config import MaskConfig
from data_prep.contract.masking.random_streams import GAMMA, mix, stream_keys
from data_prep.contract.masking.settings import Masking

POSITION_BITS = np.uint64(16)
REPLACEMENT_DRAWS = 1 << 16
"""Draw p orders position p (below this) among the row's tokens or words, draw p + this decides what stands there."""

LENGTH_DRAWS = 2 << 16
"""Draw p + this decides how many words a span has that begins at position p."""

NO_WORD = 1 << 20
"""Size, beyond any budget, that stands for no word at all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masks:
    """K maskings of R rows, P slots each."""

    masked_positions: np.ndarray
    """[R, K, P] u16; the first num_masked sorted and distinct, the rest 0."""
    replacement_ids: np.ndarray
    """[R, K, P] what the model's input holds there; in unused slots the row's token at position 0."""
    num_masked: np.ndarray
    """[R, K] u16, slots in use."""


def mask_rows(
    input_ids: np.ndarray, lengths: np.ndarray, sequence_ids: np.ndarray, masking: Masking, variants: int
) -> Masks:
    """Draw the masks of R rows.

    A full row gets ``masked_per_row`` positions, or all it has that can be masked; a short one
    P / S of its maskable tokens, rounded, at least one.

    Args:
        input_ids: [R, S] original tokens.
        lengths: [R] real tokens.
        sequence_ids: [R] u64, what the draws are keyed on.
        masking: what else they follow from.
        variants: K, how many maskings of each row.
    """
    places = _Places.of(input_ids, lengths, masking)
    shape = (len(input_ids), variants, masking.masked_per_row)
    positions = np.empty(shape, dtype=np.uint16)
    replacements = np.empty(shape, dtype=input_ids.dtype)
    for variant in range(variants):  # one at a time: the draws then stay in the cache
        keys = stream_keys(masking.seed, sequence_ids, variant)
        positions[:, variant], replacements[:, variant] = _draw(keys, input_ids, places, masking)
    num_masked = np.repeat(places.counts[:, None], variants, axis=1).astype(np.uint16)
    return Masks(masked_positions=positions, replacement_ids=replacements, num_masked=num_masked)


def mask_variants(
    input_ids: np.ndarray, lengths: np.ndarray, sequence_ids: np.ndarray, masking: Masking, variants: np.ndarray
) -> Masks:
    """One masking of each row, the same to the bit as ``mask_rows`` draws it: K is 1.

    Args:
        input_ids: [R, S] original tokens.
        lengths: [R] real tokens.
        sequence_ids: [R] u64.
        masking: what else they follow from.
        variants: [R] the number of the masking.
    """
    places = _Places.of(input_ids, lengths, masking)
    positions, replacements = _draw(stream_keys(masking.seed, sequence_ids, variants), input_ids, places, masking)
    return Masks(
        masked_positions=positions.astype(np.uint16)[:, None],
        replacement_ids=replacements[:, None],
        num_masked=places.counts.astype(np.uint16)[:, None],
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Places:
    """Where R rows can be masked."""

    maskable: np.ndarray
    """[R, S] bool."""
    counts: np.ndarray
    """[R] positions to mask."""
    used: np.ndarray
    """[R, P] bool, the slots in use."""
    words: "_Words | None"
    """Where words are; None for single tokens."""

    @classmethod
    def of(cls, input_ids: np.ndarray, lengths: np.ndarray, masking: Masking) -> "_Places":
        maskable = _maskable(input_ids, lengths, masking.unmaskable_ids)
        counts = _counts(maskable.sum(axis=1), lengths, masking.masked_per_row, input_ids.shape[1])
        words = None
        if masking.mask.unit != "token":
            assert masking.continues_word is not None, f"unit {masking.mask.unit} needs to know where words go on"
            words = _Words.of(maskable, masking.continues_word[input_ids])
        used = np.arange(masking.masked_per_row) < counts[:, None]
        return cls(maskable=maskable, counts=counts, used=used, words=words)


def _draw(keys: np.ndarray, input_ids: np.ndarray, places: _Places, masking: Masking) -> tuple[np.ndarray, np.ndarray]:
    """Positions and replacements, both [R, P], of one masking of each row, drawn from these keys, [R]."""
    keys = keys[:, None]
    if places.words is None:
        chosen = _choose_tokens(keys, places.maskable, places.used)
    else:
        chosen = _choose_words(keys, places.words, places.used, _length_thresholds(masking.mask))
    original = np.take_along_axis(input_ids, chosen, axis=1)
    choices = masking.ordinary_ids.astype(input_ids.dtype)
    replaced = _replace(keys, chosen, original, masking.mask, masking.mask_id, choices)
    return chosen, np.where(places.used, replaced, original)


def _maskable(input_ids: np.ndarray, lengths: np.ndarray, unmaskable_ids: np.ndarray) -> np.ndarray:
    maskable = np.arange(input_ids.shape[1]) < lengths[:, None]
    for unmaskable in unmaskable_ids:
        maskable &= input_ids != unmaskable
    return maskable


def _counts(maskable: np.ndarray, lengths: np.ndarray, masked_per_row: int, seq_length: int) -> np.ndarray:
    """[R] positions to mask: all of P in full rows, in short ones their share, never more than there are."""
    share = (2 * masked_per_row * maskable + seq_length) // (2 * seq_length)  # rounded, in whole numbers
    wanted = np.where(lengths == seq_length, masked_per_row, np.clip(share, 1, masked_per_row))
    return np.minimum(wanted, maskable)


def _in_random_order(keys: np.ndarray, candidates: np.ndarray, count: int) -> np.ndarray:
    """[R, count] the first ``count`` candidate positions of each row in random order.

    The position rides in the low bits of its own draw, so sorting values suffices (no argsort). Where
    there are fewer candidates, the surplus entries are other positions.
    """
    counters = np.arange(1, candidates.shape[1] + 1, dtype=np.uint64) * GAMMA
    draws = mix(keys + counters)
    draws >>= POSITION_BITS
    draws[~candidates] = (1 << 48) - 1
    draws <<= POSITION_BITS
    draws |= np.arange(candidates.shape[1], dtype=np.uint64)
    draws.sort(axis=1)
    return (draws[:, :count] & np.uint64(0xFFFF)).astype(np.int64)


def _choose_tokens(keys: np.ndarray, maskable: np.ndarray, used: np.ndarray) -> np.ndarray:
    """[R, P] masked positions, sorted; 0 in unused slots."""
    chosen = _in_random_order(keys, maskable, used.shape[1])
    chosen[~used] = maskable.shape[1]  # sorts behind every real position
    chosen.sort(axis=1)
    chosen[~used] = 0
    return chosen


def _replace(
    keys: np.ndarray,
    positions: np.ndarray,
    original: np.ndarray,
    mask: MaskConfig,
    mask_id: int,
    choices: np.ndarray,
) -> np.ndarray:
    """[R, P] what stands at the masked positions: [MASK], a random token or the original."""
    draws = mix(keys + (positions.astype(np.uint64) + np.uint64(REPLACEMENT_DRAWS + 1)) * GAMMA)
    action = draws >> np.uint64(32)
    mask_below = round(mask.mask_fraction * 2**32)
    random_below = round((mask.mask_fraction + mask.random_fraction) * 2**32)
    # The low half picks a token by multiply-and-shift: unequal by at most len(choices) in 2^32.
    picked = ((draws & np.uint64(0xFFFFFFFF)) * np.uint64(len(choices))) >> np.uint64(32)
    replaced = np.where(action < random_below, choices[picked], original)
    return np.where(action < mask_below, original.dtype.type(mask_id), replaced)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Words:
    """The words of R rows. A word is a maskable token and those after it that continue it, so it never crosses a
    special token. Positions are places in the row; S stands for the end of the row."""

    starts: np.ndarray
    """[R, S] bool, whether a word begins here."""
    start_of: np.ndarray
    """[R, S] position at which the word here begins."""
    sizes: np.ndarray
    """[R, S] tokens of the word that begins here; NO_WORD where none does."""
    number_of: np.ndarray
    """[R, S] number of the word here."""
    ends: np.ndarray
    """[R, W] position behind word w."""
    last_of: np.ndarray
    """[R, S] number of the last word before the next special token."""

    @classmethod
    def of(cls, maskable: np.ndarray, continues: np.ndarray) -> "_Words":
        """Both [R, S] bool."""
        num_rows, seq_length = maskable.shape
        first = maskable.copy()  # of a run of maskable tokens
        first[:, 1:] &= ~maskable[:, :-1]
        starts = first | (maskable & ~continues)
        number_of = np.cumsum(starts, axis=1, dtype=np.int32) - 1
        position = np.arange(seq_length, dtype=np.int32)
        start_of = np.maximum.accumulate(np.where(starts, position, np.int32(0)), axis=1)
        # Read from the right, a word ends before the next start or the next token that cannot be masked.
        stops = np.where(starts | ~maskable, position, np.int32(seq_length))
        stops = np.minimum.accumulate(stops[:, ::-1], axis=1)[:, ::-1]
        end_of = np.append(stops[:, 1:], np.full((num_rows, 1), seq_length, dtype=np.int32), axis=1)
        sizes = np.where(starts, end_of - position, np.int32(NO_WORD))
        rows, columns = np.nonzero(starts)
        ends = np.zeros((num_rows, int(number_of.max(initial=0)) + 1), dtype=np.int32)
        ends[rows, number_of[rows, columns]] = end_of[rows, columns]
        run_ends = np.where(maskable, np.int32(seq_length), number_of)
        run_ends = np.minimum.accumulate(run_ends[:, ::-1], axis=1)[:, ::-1]
        last_of = np.minimum(run_ends, number_of[:, -1:])
        return cls(starts=starts, start_of=start_of, sizes=sizes, number_of=number_of, ends=ends, last_of=last_of)


def _length_thresholds(mask: MaskConfig) -> np.ndarray:
    """[longest - 1] u64: a span has one word more than the number of these that a 32-bit draw reaches.

    SpanBERT draws from a geometric distribution cut off at the longest length and scaled to sum to 1 (hence the
    mean of 3.8 in its section 3.1, for 0.2 and 10). Only additions, products and quotients: the same on every machine.
    """
    if mask.unit == "span":
        factors = [1.0] + [1.0 - mask.span_p] * (mask.span_max_words - 1)
        weights = list(itertools.accumulate(factors, lambda weight, factor: weight * factor))
    elif mask.unit == "ngram":
        weights = [1.0 / words for words in range(1, mask.ngram_max_words + 1)]
    else:
        weights = [1.0]
    sums = list(itertools.accumulate(weights))
    return np.array([round(below / sums[-1] * 2**32) for below in sums[:-1]], dtype=np.uint64)


def _choose_words(keys: np.ndarray, words: _Words, used: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """[R, P] masked positions, sorted; 0 in unused slots."""
    num_rows, seq_length = words.starts.shape
    order = _in_random_order(keys, words.starts, words.ends.shape[1])
    remaining = used.sum(axis=1, dtype=np.int32)
    steps = np.zeros((num_rows, seq_length + 1), dtype=np.int8)
    sizes = words.sizes
    if len(thresholds):
        _mark(steps, *_place_spans(keys, words, order[:, : used.shape[1]], thresholds, remaining))
        sizes = np.where(np.cumsum(steps, axis=1, dtype=np.int8)[:, :-1], np.int32(NO_WORD), sizes)
    _mark(steps, *_place_words(sizes, order, remaining))
    chosen = np.cumsum(steps, axis=1, dtype=np.int8)
    positions = np.zeros(used.shape, dtype=np.int64)
    positions[used] = np.flatnonzero(chosen.view(bool)) % (seq_length + 1)
    return positions


def _mark(steps: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> None:
    """Add disjoint ranges of positions, both [R, tries], to ``steps``, [R, S + 1]. Empty ones are left out.

    The running sum of ``steps`` is 1 where a token is chosen.
    """
    row, number = np.nonzero(ends > begins)
    steps[row, begins[row, number]] += 1
    steps[row, ends[row, number]] -= 1


def _place_spans(
    keys: np.ndarray, words: _Words, tries: np.ndarray, thresholds: np.ndarray, remaining: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Begins and ends, [R, tries], of the spans at the tried positions, [R, tries], one try after the other.

    They are empty where none is placed. Lowers ``remaining``, [R].

    As in Megatron-LM a span that is longer than what remains to be masked is shortened to the words that fit, and one
    that meets an earlier span is dropped. It ends before a special token. P tries find room for nearly all; single
    words fill what is left.
    """
    seq_length = words.starts.shape[1]
    row = np.arange(len(tries))
    flat = tries + row[:, None] * seq_length
    draws = mix(keys + (tries.astype(np.uint64) + np.uint64(LENGTH_DRAWS + 1)) * GAMMA) >> np.uint64(32)
    extra = np.searchsorted(thresholds, draws, side="right")
    final = np.minimum(words.number_of.take(flat) + extra, words.last_of.take(flat))
    wanted_ends = np.where(words.starts.take(flat), np.take_along_axis(words.ends, final, axis=1), 0)
    begins = np.ascontiguousarray(tries.T, dtype=np.int32)  # [tries, R] from here on
    ends = np.ascontiguousarray(wanted_ends.T, dtype=np.int32)
    for number, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        limit = begin + remaining
        shortened = words.start_of[row, np.minimum(limit, seq_length - 1)]
        end = np.where(end > limit, shortened, end)
        meets = ((begins[:number] < end) & (begin < ends[:number])).any(axis=0)
        placed = ~meets & (end > begin)
        ends[number] = np.where(placed, end, 0)  # 0 meets nothing
        remaining -= np.where(placed, end - begin, 0)
        if not remaining.any():
            ends[number + 1 :] = 0
            break
    return begins.T, ends.T


def _place_words(sizes: np.ndarray, order: np.ndarray, remaining: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Begins and ends, [R, W], of whole words taken in the order of their positions, [R, W], as long as they fit, and
    of a cut one where tokens remain; empty where none is taken. Lowers ``remaining``, [R].

    Args:
        sizes: [R, S] tokens of the free word that begins here, NO_WORD where none does.
    """
    ordered = np.take_along_axis(sizes, order, axis=1)
    taken = ordered.T.copy()  # [W, R]
    for number, size in enumerate(taken):
        size *= size <= remaining
        remaining -= size
        if not remaining.any():
            taken[number + 1 :] = 0
            break
    ends = order + taken.T
    row = np.flatnonzero(remaining)  # no free word fits here: the first of them is cut
    cut = np.argmax((ordered[row] < NO_WORD) & (taken.T[row] == 0), axis=1)
    ends[row, cut] += remaining[row]
    return order, ends
