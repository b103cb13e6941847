import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.config import PackingConfig
from data_prep.rows.packing import _best_fit, fill_rows, plan_rows

PAD, CLS, SEP = 0, 2, 3
DTYPE = np.dtype("<u2")

lengths_strategy = st.lists(st.integers(0, 60), max_size=12)


def stream(lengths):
    """A token array in which every token is another one, none of them special."""
    return np.arange(5, 5 + sum(lengths)).astype(DTYPE)


def documents_of(lengths):
    return np.split(stream(lengths), np.cumsum(lengths)[:-1]) if len(lengths) else []


def plan(lengths, seq_length, sequence=None, seed=0, key=0, **packing):
    return plan_rows(
        np.array(lengths, dtype=np.int64),
        packing=PackingConfig(**packing),
        seq_length=seq_length,
        seed=seed,
        key=key,
        sequence=sequence,
    )


def packed(lengths, seq_length, sequence=None, **packing):
    rows = plan(lengths, seq_length, sequence, **packing)
    return fill_rows(rows, 0, len(rows.lengths), stream(lengths), pad=PAD, cls=CLS, sep=SEP)


def boundaries(rows, index):
    return rows.boundary_positions[rows.boundary_offsets[index] : rows.boundary_offsets[index + 1]].tolist()


def check_frames(rows):
    """What the shard contract demands of rows."""
    assert rows.boundary_offsets[0] == 0
    assert rows.boundary_offsets[-1] == len(rows.boundary_positions)
    assert rows.input_ids.dtype == DTYPE
    assert (rows.lengths >= 3).all()
    for index, (ids, length) in enumerate(zip(rows.input_ids, rows.lengths, strict=True)):
        assert ids[0] == CLS
        assert ids[1] != SEP, "a row never begins with a joint"
        assert ids[length - 1] == SEP
        assert (ids[:length] != PAD).all()
        assert (ids[length:] == PAD).all()
        places = boundaries(rows, index)
        assert places == sorted(set(places))
        for place in places:
            assert ids[place - 1] == SEP
            assert 1 < place < length - 1


def tokens_in_order(rows):
    return rows.input_ids[~np.isin(rows.input_ids, [PAD, CLS, SEP])]


@st.composite
def documents_and_order(draw):
    lengths = draw(lengths_strategy)
    if not lengths or draw(st.booleans()):
        return lengths, None
    sequence = draw(st.lists(st.integers(0, len(lengths) - 1), max_size=15))
    return lengths, np.array(sequence, dtype=np.int64)


def expected_tokens(lengths, sequence):
    documents = documents_of(lengths)
    order = range(len(lengths)) if sequence is None else sequence
    return np.concatenate([np.empty(0, DTYPE), *(documents[index] for index in order)])


@given(
    documents=documents_and_order(),
    seq_length=st.integers(4, 24),
    mode=st.sampled_from(["concat", "document"]),
    short=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_every_token_is_in_exactly_one_row_in_order(documents, seq_length, mode, short):
    lengths, sequence = documents
    rows = packed(lengths, seq_length, sequence, mode=mode, short_seq_prob=short)
    check_frames(rows)
    np.testing.assert_array_equal(tokens_in_order(rows), expected_tokens(lengths, sequence))


@given(documents=documents_and_order(), seq_length=st.integers(4, 24))
def test_isolated_rows_hold_every_token_once(documents, seq_length):
    lengths, sequence = documents
    rows = packed(lengths, seq_length, sequence, mode="isolated")
    check_frames(rows)
    np.testing.assert_array_equal(np.sort(tokens_in_order(rows)), np.sort(expected_tokens(lengths, sequence)))


@given(lengths=lengths_strategy, seq_length=st.integers(3, 24))
def test_only_the_last_row_of_a_stream_is_short(lengths, seq_length):
    assert (packed(lengths, seq_length).lengths[:-1] == seq_length).all()


@given(lengths=lengths_strategy, seq_length=st.integers(3, 24), short=st.sampled_from([0.0, 0.5]))
def test_boundaries_and_row_starts_give_the_documents_back(lengths, seq_length, short):
    rows = packed(lengths, max(4, seq_length) if short else seq_length, short_seq_prob=short)
    starts = set()
    for index, ids in enumerate(rows.input_ids):
        starts |= {int(ids[place]) - 5 for place in [1, *boundaries(rows, index)]}
    assert {int(start) for start, length in zip(np.cumsum(lengths) - lengths, lengths, strict=True) if length} <= starts


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([4, 2], [[CLS, 5, 6, 7, 8, SEP], [CLS, 9, 10, SEP, PAD, PAD]]),  # joint dropped at the row's edge
        ([3, 2], [[CLS, 5, 6, 7, SEP, SEP], [CLS, 8, 9, SEP, PAD, PAD]]),  # joint fills the row
        ([2, 1], [[CLS, 5, 6, SEP, 7, SEP]]),
        ([0, 1], [[CLS, 5, SEP, PAD, PAD, PAD]]),
    ],
)
def test_joints(lengths, expected):
    rows = packed(lengths, 6)
    np.testing.assert_array_equal(rows.input_ids, expected)
    assert rows.boundary_positions.tolist() == ([4] if lengths == [2, 1] else [])


@pytest.mark.parametrize("mode", ["concat", "document", "isolated"])
@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_no_token_gives_no_row(mode, lengths):
    rows = packed(lengths, 8, mode=mode)
    assert rows.input_ids.shape == (0, 8)
    assert rows.boundary_offsets.tolist() == [0]


def test_rows_of_one_document():
    rows = packed([5, 0, 1], 6, mode="document")
    np.testing.assert_array_equal(
        rows.input_ids, [[CLS, 5, 6, 7, 8, SEP], [CLS, 9, SEP, PAD, PAD, PAD], [CLS, 10, SEP, PAD, PAD, PAD]]
    )
    assert rows.boundary_positions.tolist() == []


def test_isolated_pieces_have_their_own_frame():
    # Pieces of 6, 1, 3 and 2 tokens take 8, 3, 5 and 4 places: 5 + 3 fill a row, 4 is left alone.
    rows = packed([7, 3, 2], 8, mode="isolated")
    np.testing.assert_array_equal(
        rows.input_ids,
        [
            [CLS, 5, 6, 7, 8, 9, 10, SEP],
            [CLS, 12, 13, 14, SEP, CLS, 11, SEP],
            [CLS, 15, 16, SEP, PAD, PAD, PAD, PAD],
        ],
    )
    assert [boundaries(rows, index) for index in range(3)] == [[], [5], []]


@given(documents=documents_and_order(), seq_length=st.integers(4, 24))
def test_isolated_pieces_are_consecutive_text_of_one_document(documents, seq_length):
    lengths, sequence = documents
    owner = np.repeat(np.arange(len(lengths)), lengths)
    rows = packed(lengths, seq_length, sequence, mode="isolated")
    for index, ids in enumerate(rows.input_ids):
        cuts = [0, *boundaries(rows, index), int(rows.lengths[index])]
        for begin, end in itertools.pairwise(cuts):
            assert ids[begin] == CLS
            assert ids[end - 1] == SEP
            inside = ids[begin + 1 : end - 1].astype(int)
            assert len(inside)
            assert (np.diff(inside) == 1).all()
            assert len(set(owner[inside - 5])) == 1


@given(sizes=st.lists(st.integers(3, 20), max_size=40), capacity=st.integers(20, 24))
def test_best_fit_is_best_fit_decreasing(sizes, capacity):
    sizes = sorted(sizes, reverse=True)
    rooms, expected = [], []
    for size in sizes:  # one at a time, into the fullest row that has room
        fitting = [room for room in rooms if room >= size]
        if fitting:
            rooms[rooms.index(min(fitting))] -= size
        else:
            rooms.append(capacity - size)
        expected.append(sorted(rooms))
    rows, columns = _best_fit(np.array(sizes, dtype=np.int64), capacity)
    used = np.bincount(rows, weights=sizes, minlength=0).astype(int)
    assert sorted(capacity - used) == (expected[-1] if sizes else [])
    occupied = np.zeros((len(used), capacity), dtype=int)
    for row, column, size in zip(rows, columns, sizes, strict=True):
        occupied[row, column : column + size] += 1
    np.testing.assert_array_equal(occupied.sum(axis=1), used)  # nothing beyond the row
    assert (occupied == (np.arange(capacity) < used[:, None])).all(), "pieces overlap or leave a gap"


@pytest.mark.parametrize("seq_length", [128, 512])
def test_isolated_rows_waste_less_than_a_hundredth(seq_length):
    draw = np.random.default_rng(3)
    for lengths in (
        np.exp(draw.normal(4.5, 1.2, 20_000)).astype(np.int64) + 1,  # web pages
        draw.integers(80_000, 250_000, 30),  # novels
        draw.integers(1, 40, 50_000),  # lines
    ):
        rows = plan(lengths, seq_length, mode="isolated")
        assert rows.lengths.sum(dtype=np.int64) > 0.99 * len(rows.lengths) * seq_length


@given(
    lengths=lengths_strategy,
    seq_length=st.integers(4, 24),
    mode=st.sampled_from(["document", "isolated"]),
    shortest=st.integers(1, 22),
)
def test_dropped_remainders_are_counted_and_nothing_else_is_lost(lengths, seq_length, mode, shortest):
    shortest = min(shortest, seq_length - 2)
    rows = packed(lengths, seq_length, mode=mode, drop_remainder_below=shortest)
    check_frames(rows)
    expected = []
    for document in documents_of(lengths):
        rest = len(document) % (seq_length - 2)
        expected += document[: len(document) - rest if rest < shortest else len(document)].tolist()
    assert sorted(tokens_in_order(rows).tolist()) == expected
    dropped = plan(lengths, seq_length, mode=mode, drop_remainder_below=shortest).dropped_tokens
    assert dropped == sum(lengths) - len(expected)


@pytest.mark.parametrize("mode", ["concat", "document"])
def test_a_share_of_the_rows_is_short_with_uniform_lengths(mode):
    lengths = plan([400_000], 22, mode=mode, short_seq_prob=0.3).lengths[:-1].astype(int) - 2
    counts = np.bincount(lengths, minlength=21)
    assert counts[:2].sum() == 0
    expected = np.where(np.arange(2, 21) == 20, 0.7, 0) + 0.3 / 19
    deviation = np.sqrt(len(lengths) * expected * (1 - expected))
    assert (abs(counts[2:] - len(lengths) * expected) < 5 * deviation).all()


def test_short_rows_inside_a_document_are_no_remainders():
    rows = plan([9_000, 21], 22, mode="document", short_seq_prob=0.5, drop_remainder_below=20)
    assert (rows.lengths < 22).sum() > 50
    assert rows.dropped_tokens < 40


def test_isolated_rows_come_in_the_order_of_the_token_array():
    rows = plan([3, 18, 5, 40, 7], 22, mode="isolated")
    starts = np.minimum.reduceat(rows.segment_starts, rows.segment_offsets[:-1])
    assert starts.tolist() == sorted(starts)


def test_short_rows_depend_on_seed_and_key_alone():
    def lengths(**numbers):
        return plan([9_000], 22, short_seq_prob=0.5, **numbers).lengths.tolist()

    assert lengths(seed=1, key=1) == lengths(seed=1, key=1)
    assert len({tuple(lengths(seed=seed, key=key)) for seed in (1, 2) for key in (1, 2)}) == 4


@given(
    documents=documents_and_order(),
    seq_length=st.integers(4, 24),
    packing=st.sampled_from(
        [{"mode": "concat"}, {"mode": "concat", "short_seq_prob": 0.4}, {"mode": "document"}, {"mode": "isolated"}]
    ),
    cuts=st.lists(st.integers(0, 400), max_size=4),
)
def test_blocks_equal_the_whole(documents, seq_length, packing, cuts):
    lengths, sequence = documents
    rows = plan(lengths, seq_length, sequence, **packing)
    count = len(rows.lengths)
    whole = packed(lengths, seq_length, sequence, **packing)
    edges = sorted({0, count, *(min(cut, count) for cut in cuts)})
    for first, last in itertools.pairwise(edges):
        block = fill_rows(rows, first, last, stream(lengths), pad=PAD, cls=CLS, sep=SEP)
        np.testing.assert_array_equal(block.input_ids, whole.input_ids[first:last])
        np.testing.assert_array_equal(block.lengths, whole.lengths[first:last])
        assert block.boundary_offsets[0] == 0
        for index in range(last - first):
            assert boundaries(block, index) == boundaries(whole, first + index)


def test_rows_are_filled_from_a_memory_map_in_steps(tmp_path, monkeypatch):
    lengths = [300, 7, 90, 41]
    stream(lengths).tofile(tmp_path / "tokens.bin")
    tokens = np.memmap(tmp_path / "tokens.bin", dtype=DTYPE, mode="r")
    whole = packed(lengths, 16)
    monkeypatch.setattr("data_prep.rows.packing.FILL_TOKENS", 50)  # three rows at once
    rows = plan(lengths, 16)
    mapped = fill_rows(rows, 0, len(rows.lengths), tokens, pad=PAD, cls=CLS, sep=SEP)
    np.testing.assert_array_equal(mapped.input_ids, whole.input_ids)
