import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.packing import pack

PAD, CLS, SEP = 0, 2, 3
DTYPE = np.dtype("<u2")

documents_strategy = st.lists(
    st.lists(st.integers(5, 60_000), max_size=60).map(lambda ids: np.array(ids, dtype=DTYPE)), max_size=12
)


def packed(documents, seq_length):
    return pack(documents, seq_length=seq_length, pad=PAD, cls=CLS, sep=SEP, dtype=DTYPE)


@given(documents=documents_strategy, seq_length=st.integers(3, 24))
def test_every_token_is_in_exactly_one_row_in_order(documents, seq_length):
    ids = packed(documents, seq_length).input_ids
    kept = ids[~np.isin(ids, [PAD, CLS, SEP])]
    np.testing.assert_array_equal(kept, np.concatenate([np.empty(0, DTYPE), *documents]))


@given(documents=documents_strategy, seq_length=st.integers(3, 24))
def test_rows_are_framed_and_only_the_last_may_be_short(documents, seq_length):
    rows = packed(documents, seq_length)
    assert (rows.lengths[:-1] == seq_length).all()
    assert (rows.lengths >= 3).all()
    for ids, length in zip(rows.input_ids, rows.lengths, strict=True):
        assert ids[0] == CLS
        assert ids[1] != SEP, "a row never begins with a joint"
        assert ids[length - 1] == SEP
        assert (ids[:length] != PAD).all()
        assert (ids[length:] == PAD).all()


@given(documents=documents_strategy, seq_length=st.integers(3, 24))
def test_boundaries_and_row_starts_give_the_documents_back(documents, seq_length):
    rows = packed(documents, seq_length)
    assert rows.boundary_offsets[0] == 0
    assert rows.boundary_offsets[-1] == len(rows.boundary_positions)
    starts = set()
    position = 0  # in the stream of kept tokens
    for index, ids in enumerate(rows.input_ids):
        within = rows.boundary_positions[rows.boundary_offsets[index] : rows.boundary_offsets[index + 1]]
        for place in within:
            assert ids[place - 1] == SEP
            assert 1 < place < rows.lengths[index] - 1
            starts.add(position + int(np.sum(~np.isin(ids[:place], [PAD, CLS, SEP]))))
        starts_here = position
        position += int(np.sum(~np.isin(ids, [PAD, CLS, SEP])))
        starts.add(starts_here)  # a document that begins with the row needs no boundary
    lengths = [len(document) for document in documents if len(document)]
    assert set(np.cumsum([0, *lengths])[:-1].tolist() if lengths else []) <= starts


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([4, 2], [[CLS, 5, 5, 5, 5, SEP], [CLS, 6, 6, SEP, PAD, PAD]]),  # joint dropped at the row's edge
        ([3, 2], [[CLS, 5, 5, 5, SEP, SEP], [CLS, 6, 6, SEP, PAD, PAD]]),  # joint fills the row
        ([2, 1], [[CLS, 5, 5, SEP, 6, SEP]]),
        ([0, 1], [[CLS, 6, SEP, PAD, PAD, PAD]]),
    ],
)
def test_joints(lengths, expected):
    documents = [np.full(n, 5 + i, DTYPE) for i, n in enumerate(lengths)]
    rows = packed(documents, 6)
    np.testing.assert_array_equal(rows.input_ids, expected)
    assert rows.boundary_positions.tolist() == ([4] if lengths == [2, 1] else [])


def test_no_document_gives_no_row():
    rows = packed([], 8)
    assert rows.input_ids.shape == (0, 8)
    assert rows.boundary_offsets.tolist() == [0]
