import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_prep.config import MaskConfig
from data_prep.contract.masking.masks import _length_thresholds, mask_rows, mask_variants
from data_prep.contract.masking.random_streams import GAMMA, mix, stream_keys
from data_prep.contract.masking.settings import Masking

PAD, CLS, SEP, MASK = 0, 2, 3, 4
FRAME = np.array([PAD, CLS, SEP])
ORDINARY = np.arange(10, 1000)
CONTINUES = np.arange(1000) % 3 == 2
"""A third of the ids continue a word; 2, which is [CLS], too: a special token must not, whatever this says"""
UNITS = ("token", "word", "span", "ngram")


def rows_of(lengths, seq_length, seed=0):
    """Rows with [CLS], [SEP], a [SEP] in the middle and padding."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(10, 1000, (len(lengths), seq_length)).astype(np.uint16)
    for row, length in enumerate(lengths):
        ids[row, 0], ids[row, length // 2], ids[row, length - 1] = CLS, SEP, SEP
        ids[row, length:] = PAD
    return ids, np.array(lengths, dtype=np.uint16), np.arange(len(lengths), dtype=np.uint64) + 7


def masks_of(ids, lengths, sequence_ids, masked_per_row=19, seed=1, **mask):
    masking = masking_with(masked_per_row, seed, **mask)
    return mask_rows(ids, lengths, sequence_ids, masking, masking.mask.variants)


def masking_with(masked_per_row, seed, **mask):
    return Masking(
        mask=MaskConfig(**{"variants": 2, **mask}),
        masked_per_row=masked_per_row,
        seed=seed,
        unmaskable_ids=FRAME,
        mask_id=MASK,
        ordinary_ids=ORDINARY,
        continues_word=CONTINUES,
    )


def test_mix_is_splitmix64():
    # The first outputs of SplitMix64 from state 1234567, as published with the reference code.
    states = np.array([1234567], dtype=np.uint64) + np.arange(1, 4, dtype=np.uint64) * GAMMA
    assert mix(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(
    lengths=st.lists(st.integers(3, 40), min_size=1, max_size=8),
    masked_per_row=st.integers(1, 38),
    seed=st.integers(0, 2**63 - 1),
    unit=st.sampled_from(UNITS),
)
@example(lengths=[12], masked_per_row=25, seed=1, unit="span")  # one row alone, whose last word is cut
def test_positions_are_legal_distinct_and_as_many_as_they_should(lengths, masked_per_row, seed, unit):
    ids, lengths, sequence_ids = rows_of(lengths, 40, seed % 1000)
    masks = masks_of(ids, lengths, sequence_ids, masked_per_row, seed=seed, unit=unit)
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


@given(
    lengths=st.lists(st.integers(3, 40), min_size=1, max_size=8),
    masked_per_row=st.integers(1, 38),
    seed=st.integers(0, 2**63 - 1),
    unit=st.sampled_from(UNITS),
    fractions=st.sampled_from([(0.8, 0.1), (0.0, 1.0), (0.3, 0.6)]),
    data=st.data(),
)
def test_masks_drawn_for_single_rows_are_those_of_all(lengths, masked_per_row, seed, unit, fractions, data):
    ids, lengths, sequence_ids = rows_of(lengths, 40, seed % 1000)
    mask = {"unit": unit, "mask_fraction": fractions[0], "random_fraction": fractions[1], "variants": 5}
    masking = masking_with(masked_per_row, seed, **mask)
    whole = vars(mask_rows(ids, lengths, sequence_ids, masking, 5))
    picks = data.draw(st.lists(st.tuples(st.integers(0, len(lengths) - 1), st.integers(0, 4)), min_size=1))
    rows, variants = np.array(picks).T
    single = vars(mask_variants(ids[rows], lengths[rows], sequence_ids[rows], masking, variants))
    for name, array in whole.items():
        assert single[name].dtype == array.dtype
        np.testing.assert_array_equal(single[name][:, 0], array[rows, variants])


@pytest.mark.parametrize("unit", UNITS)
def test_full_rows_get_exactly_p(unit):
    masks = masks_of(*rows_of([128] * 50, 128), unit=unit)
    assert (masks.num_masked == 19).all()


def test_token_masks_never_change():
    # What the first release drew: masks of shards are reproducible from their manifest.
    ids = (10 + np.arange(6 * 40).reshape(6, 40) * 7919 % 990).astype(np.uint16)
    lengths = np.array([40, 40, 40, 23, 3, 40], dtype=np.uint16)
    ids[:, 0] = CLS
    for row, length in enumerate(lengths):
        ids[row, length - 1], ids[row, length:] = SEP, PAD
    masks = masks_of(ids, lengths, np.arange(6, dtype=np.uint64) + 7, 6, seed=5, variants=3)
    arrays = (masks.masked_positions, masks.replacement_ids, masks.num_masked)
    digest = hashlib.sha256(b"".join(array.astype("<u2").tobytes() for array in arrays)).hexdigest()
    assert digest == "d9182d6a9646c9ac50bf185458d0d8394e6b23e1a15806968814b57ec633025a"


@pytest.fixture(scope="module", params=UNITS)
def many(request):
    ids, lengths, sequence_ids = rows_of([128] * 4000, 128)
    return ids, masks_of(ids, lengths, sequence_ids, unit=request.param)


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


@pytest.mark.parametrize(("masked", "at_random"), [(0.5, 0.3), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.6, 0.4)])
def test_other_splits(masked, at_random):
    ids, lengths, sequence_ids = rows_of([128] * 1000, 128)
    masks = masks_of(ids, lengths, sequence_ids, mask_fraction=masked, random_fraction=at_random)
    original = np.take_along_axis(ids[:, None], masks.masked_positions.astype(np.int64), axis=2)
    replaced, trials = masks.replacement_ids, masks.replacement_ids.size
    kept = 1 - masked - at_random + at_random / len(ORDINARY)
    for count, probability in ((np.sum(replaced == MASK), masked), (np.sum(replaced == original), kept)):
        assert within_bounds(count, trials, probability) or count == trials * probability
    assert np.isin(replaced[replaced != original], [MASK, *ORDINARY]).all()


def test_every_position_is_equally_likely():
    masks = masks_of(*rows_of([128] * 4000, 128))
    counts = np.bincount(masks.masked_positions.ravel(), minlength=128)
    assert counts[[0, 64, 127]].sum() == 0
    likely = np.delete(counts, [0, 64, 127])
    assert all(within_bounds(count, 4000 * 2, 19 / 125) for count in likely)


@pytest.mark.parametrize("unit", UNITS)
def test_variants_rows_and_seeds_differ(unit):
    ids, lengths, sequence_ids = rows_of([128] * 4000, 128)
    masks = masks_of(ids, lengths, sequence_ids, unit=unit)
    first = masks.masked_positions[:, 0]
    assert not (first == masks.masked_positions[:, 1]).all(axis=1).any()
    assert len(np.unique(first, axis=0)) > 0.99 * len(first)  # a few long spans can fall alike
    other = masks_of(ids, lengths, sequence_ids, seed=2, unit=unit)
    assert not (first == other.masked_positions[:, 0]).all(axis=1).any()


@given(order=st.permutations(range(12)), cut=st.integers(0, 12), unit=st.sampled_from(UNITS))
def test_masks_depend_on_neither_order_nor_chunks(order, cut, unit):
    ids, lengths, sequence_ids = rows_of([40, 3, 17, 40, 39, 40, 5, 40, 40, 8, 40, 40], 40)
    whole = masks_of(ids, lengths, sequence_ids, 6, unit=unit)
    for part in (order[:cut], order[cut:]):
        if not part:
            continue
        some = masks_of(ids[part], lengths[part], sequence_ids[part], 6, unit=unit)
        np.testing.assert_array_equal(some.masked_positions, whole.masked_positions[part])
        np.testing.assert_array_equal(some.replacement_ids, whole.replacement_ids[part])
        np.testing.assert_array_equal(some.num_masked, whole.num_masked[part])


@pytest.mark.parametrize("unit", UNITS)
def test_more_variants_leave_the_first_ones_as_they_are(unit):
    rows = rows_of([40] * 5, 40)
    two, five = masks_of(*rows, 6, unit=unit, variants=2), masks_of(*rows, 6, unit=unit, variants=5)
    np.testing.assert_array_equal(two.masked_positions, five.masked_positions[:, :2])


def words_of(row, length):
    """Runs of words of one row, word by word, as (begin, end): an independent reading of what a word is."""
    runs = [[]]
    for position in range(length):
        if row[position] in FRAME:
            runs.append([])
        elif runs[-1] and CONTINUES[row[position]]:
            runs[-1][-1] = (runs[-1][-1][0], position + 1)
        else:
            runs[-1].append((position, position + 1))
    return runs


@given(
    lengths=st.lists(st.integers(3, 40), min_size=1, max_size=6),
    masked_per_row=st.integers(1, 38),
    seed=st.integers(0, 1000),
    unit=st.sampled_from(["word", "span", "ngram"]),
)
def test_words_are_masked_whole_and_at_most_one_is_cut_when_no_other_fits(lengths, masked_per_row, seed, unit):
    ids, lengths, sequence_ids = rows_of(lengths, 40, seed)
    masks = masks_of(ids, lengths, sequence_ids, masked_per_row, unit=unit)
    for row, variant in itertools.product(range(len(lengths)), range(2)):
        positions = set(masks.masked_positions[row, variant, : masks.num_masked[row, variant]].tolist())
        cut, whole_left = [], []
        for begin, end in itertools.chain.from_iterable(words_of(ids[row], lengths[row])):
            inside = len(positions & set(range(begin, end)))
            if 0 < inside < end - begin:
                cut.append(inside)
                assert set(range(begin, begin + inside)) <= positions, "the beginning of a cut word is masked"
            elif not inside:
                whole_left.append(end - begin)
        assert len(cut) <= 1
        assert not cut or all(size > cut[0] for size in whole_left)


def draws_of(sequence_id, variant, seed, first):
    """Draws first, first + 1, ... for every position of a row, in Python's own numbers."""
    key = int(stream_keys(seed, np.array([sequence_id], dtype=np.uint64), variant)[0])
    states = [(key + (first + position + 1) * int(GAMMA)) % 2**64 for position in range(40)]
    return mix(np.array(states, dtype=np.uint64)).tolist()


def choose_one_by_one(runs, budget, order_draws, length_draws, weights):
    """The masked positions of one row, span after span and word after word."""
    place = {begin: (run, index) for run in runs for index, (begin, _) in enumerate(run)}
    order = sorted(place, key=lambda begin: (order_draws[begin] >> 16, begin))
    limits = [below / sum(weights) for below in itertools.accumulate(weights)]
    chosen, tries = set(), order[:budget] if len(weights) > 1 else []
    for begin in tries:
        run, index = place[begin]
        count = 1 + sum(length_draws[begin] / 2**64 >= limit for limit in limits[:-1])
        span = run[index : index + count]
        while span and span[-1][1] - begin > budget - len(chosen):
            span = span[:-1]
        positions = set(range(begin, span[-1][1])) if span else set()
        if not positions & chosen:
            chosen |= positions
    left = []
    for begin in order:
        run, index = place[begin]
        word = set(range(*run[index]))
        if word & chosen:
            continue
        if len(word) <= budget - len(chosen):
            chosen |= word
        else:
            left.append(sorted(word))
    if len(chosen) < budget:
        chosen |= set(left[0][: budget - len(chosen)])
    return sorted(chosen)


@given(
    masked_per_row=st.integers(1, 38),
    seed=st.integers(0, 1000),
    unit=st.sampled_from(["word", "span", "ngram"]),
    longest=st.integers(1, 12),
)
def test_masks_equal_those_of_a_plain_loop(masked_per_row, seed, unit, longest):
    ids, lengths, sequence_ids = rows_of([40, 40, 40], 40, seed)
    mask = {"unit": unit, "span_p": 0.3, "span_max_words": longest, "ngram_max_words": longest}
    masks = masks_of(ids, lengths, sequence_ids, masked_per_row, seed=seed, **mask)
    weights = {
        "word": [1.0],
        "span": [0.7**words for words in range(longest)],
        "ngram": [1 / words for words in range(1, longest + 1)],
    }[unit]
    for row, variant in itertools.product(range(3), range(2)):
        order_draws = draws_of(sequence_ids[row], variant, seed, 0)
        length_draws = draws_of(sequence_ids[row], variant, seed, 2 * 65_536)
        count = masks.num_masked[row, variant]
        expected = choose_one_by_one(words_of(ids[row], 40), int(count), order_draws, length_draws, weights)
        assert masks.masked_positions[row, variant, :count].tolist() == expected


def run_lengths(unit, **mask):
    """Tokens of each run of masked tokens, where every token is a word and runs seldom touch."""
    ids, lengths, sequence_ids = rows_of([512] * 500, 512)
    ids[~np.isin(ids, FRAME)] = 12
    positions = masks_of(ids, lengths, sequence_ids, 40, unit=unit, **mask).masked_positions.astype(int)
    ends = np.diff(positions, axis=2, append=10_000) != 1
    return np.diff(np.flatnonzero(ends.ravel()), prepend=-1)


def test_span_lengths_are_those_of_the_paper():
    thresholds = _length_thresholds(MaskConfig(unit="span", span_p=0.2, span_max_words=10)) / 2**32
    shares = np.diff(thresholds, prepend=0, append=1)
    np.testing.assert_allclose(shares[1:] / shares[:-1], 0.8, rtol=1e-6)
    assert round(float(np.sum(shares * np.arange(1, 11))), 1) == 3.8  # SpanBERT, section 3.1
    lengths = run_lengths("span", span_p=0.2, span_max_words=10)
    assert 3.5 < lengths.mean() < 4.4  # a little more for spans that touch, a little less for the last, shortened one
    counts = np.bincount(lengths, minlength=12)
    assert (np.diff(counts[1:8]) < 0).all()


def test_ngram_lengths_fall_as_one_over_n():
    thresholds = _length_thresholds(MaskConfig(unit="ngram", ngram_max_words=3)) / 2**32
    np.testing.assert_allclose(np.diff(thresholds, prepend=0, append=1), np.array([6, 3, 2]) / 11, rtol=1e-6)
    lengths = run_lengths("ngram", ngram_max_words=3)
    assert 1.6 < lengths.mean() < 2.1


def test_replacements_do_not_hang_on_the_unit():
    rows = rows_of([40] * 30, 40)
    tokens, words = (masks_of(*rows, 6, unit=unit) for unit in ("token", "word"))
    seen = 0
    for row, variant in itertools.product(range(30), range(2)):
        one, other = (
            dict(zip(masks.masked_positions[row, variant].tolist(), masks.replacement_ids[row, variant], strict=True))
            for masks in (tokens, words)
        )
        for position in set(one) & set(other):
            assert one[position] == other[position]
            seen += 1
    assert seen > 50
