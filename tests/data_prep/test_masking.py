import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.masking import GAMMA, mask_rows, mix

PAD, CLS, SEP, MASK = 0, 2, 3, 4
FRAME = np.array([PAD, CLS, SEP])
ORDINARY = np.arange(10, 1000)


def rows_of(lengths, seq_length, seed=0):
    """Rows with [CLS], [SEP], a [SEP] in the middle and padding."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(10, 1000, (len(lengths), seq_length)).astype(np.uint16)
    for row, length in enumerate(lengths):
        ids[row, 0], ids[row, length // 2], ids[row, length - 1] = CLS, SEP, SEP
        ids[row, length:] = PAD
    return ids, np.array(lengths, dtype=np.uint16), np.arange(len(lengths), dtype=np.uint64) + 7


def masks_of(ids, lengths, sequence_ids, masked_per_row=19, num_variants=2, seed=1):
    return mask_rows(
        ids,
        lengths,
        sequence_ids,
        masked_per_row=masked_per_row,
        num_variants=num_variants,
        seed=seed,
        unmaskable_ids=FRAME,
        mask_id=MASK,
        ordinary_ids=ORDINARY,
    )


def test_mix_is_splitmix64():
    # The first outputs of SplitMix64 from state 1234567, as published with the reference code.
    states = np.array([1234567], dtype=np.uint64) + np.arange(1, 4, dtype=np.uint64) * GAMMA
    assert mix(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(
    lengths=st.lists(st.integers(3, 40), min_size=1, max_size=8),
    masked_per_row=st.integers(1, 38),
    seed=st.integers(0, 2**63 - 1),
)
def test_positions_are_legal_distinct_and_as_many_as_they_should(lengths, masked_per_row, seed):
    ids, lengths, sequence_ids = rows_of(lengths, 40)
    masks = masks_of(ids, lengths, sequence_ids, masked_per_row, seed=seed)
    for row, length in enumerate(lengths.astype(int)):
        maskable = int(np.sum(~np.isin(ids[row, :length], FRAME)))
        share = np.floor(masked_per_row * maskable / 40 + 0.5)
        wanted = masked_per_row if length == 40 else min(max(1, share), masked_per_row)
        for variant in range(2):
            count = masks.num_masked[row, variant]
            positions = masks.masked_positions[row, variant]
            replacements = masks.replacement_ids[row, variant]
            assert count == min(wanted, maskable)
            assert (np.diff(positions[:count].astype(int)) > 0).all()
            assert not np.isin(ids[row, positions[:count]], FRAME).any()
            assert (positions[count:] == 0).all()
            assert (replacements[count:] == ids[row, 0]).all()
            assert not np.isin(replacements, [PAD, SEP]).any()


def test_full_rows_get_exactly_p():
    masks = masks_of(*rows_of([128] * 50, 128))
    assert (masks.num_masked == 19).all()


@pytest.fixture(scope="module")
def many():
    ids, lengths, sequence_ids = rows_of([128] * 4000, 128)
    return ids, masks_of(ids, lengths, sequence_ids)


def within_bounds(successes, trials, probability):
    """Five standard deviations of the binomial distribution: wrong once in 1.7 million."""
    deviation = np.sqrt(trials * probability * (1 - probability))
    return abs(successes - trials * probability) < 5 * deviation


def test_eighty_ten_ten(many):
    ids, masks = many
    original = np.take_along_axis(ids[:, None], masks.masked_positions.astype(np.int64), axis=2)
    replaced, trials = masks.replacement_ids, masks.replacement_ids.size
    assert within_bounds(np.sum(replaced == MASK), trials, 0.8)
    assert within_bounds(np.sum(replaced == original), trials, 0.1 + 0.1 / len(ORDINARY))
    other = (replaced != MASK) & (replaced != original)
    assert within_bounds(np.sum(other), trials, 0.1 - 0.1 / len(ORDINARY))


def test_replacements_are_uniform_over_the_ordinary_ids(many):
    ids, masks = many
    original = np.take_along_axis(ids[:, None], masks.masked_positions.astype(np.int64), axis=2)
    drawn = masks.replacement_ids[(masks.replacement_ids != MASK) & (masks.replacement_ids != original)]
    counts = np.bincount(drawn, minlength=1000)
    assert counts[:10].sum() == 0
    chi_square = np.sum((counts[10:] - len(drawn) / 990) ** 2 / (len(drawn) / 990))
    assert abs(chi_square - 989) < 5 * np.sqrt(2 * 989)


def test_every_position_is_equally_likely(many):
    _, masks = many
    counts = np.bincount(masks.masked_positions.ravel(), minlength=128)
    assert counts[[0, 64, 127]].sum() == 0
    likely = np.delete(counts, [0, 64, 127])
    assert all(within_bounds(count, 4000 * 2, 19 / 125) for count in likely)


def test_variants_rows_and_seeds_differ(many):
    ids, masks = many
    first = masks.masked_positions[:, 0]
    assert not (first == masks.masked_positions[:, 1]).all(axis=1).any()
    assert len(np.unique(first, axis=0)) == len(first)
    lengths, sequence_ids = np.full(4000, 128, np.uint16), np.arange(4000, dtype=np.uint64) + 7
    other = masks_of(ids, lengths, sequence_ids, seed=2)
    assert not (first == other.masked_positions[:, 0]).all(axis=1).any()


@given(order=st.permutations(range(12)), cut=st.integers(0, 12))
def test_masks_depend_on_neither_order_nor_chunks(order, cut):
    ids, lengths, sequence_ids = rows_of([40, 3, 17, 40, 39, 40, 5, 40, 40, 8, 40, 40], 40)
    whole = masks_of(ids, lengths, sequence_ids, 6)
    for part in (order[:cut], order[cut:]):
        if not part:
            continue
        some = masks_of(ids[part], lengths[part], sequence_ids[part], 6)
        np.testing.assert_array_equal(some.masked_positions, whole.masked_positions[part])
        np.testing.assert_array_equal(some.replacement_ids, whole.replacement_ids[part])
        np.testing.assert_array_equal(some.num_masked, whole.num_masked[part])


def test_more_variants_leave_the_first_ones_as_they_are():
    rows = rows_of([40] * 5, 40)
    two, five = masks_of(*rows, 6, num_variants=2), masks_of(*rows, 6, num_variants=5)
    np.testing.assert_array_equal(two.masked_positions, five.masked_positions[:, :2])
