import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_prep.verification.sequence_ids import SequenceIds

sparse = st.integers(0, 2**64 - 1)
dense = st.builds(lambda task, row: (task << 32) + row, st.integers(0, 9), st.integers(0, 99))
numbers = st.lists(st.lists(st.one_of(sparse, dense), max_size=20), max_size=8)


def repeats(batches, most_pages):
    found = SequenceIds(sum(map(len, batches)), most_pages)
    while True:
        for batch in batches:
            found.add(np.array(batch, dtype=np.uint64))
        if found.repeat or not found.next_pass():
            return found.repeat


@given(numbers, st.integers(1, 12))
@example([[5 << 32, 6 << 32], [1 << 32]], 2)  # the third takes the place of the first
def test_repeats_are_those_of_a_set(batches, most_pages):
    every = [number for batch in batches for number in batch]
    assert repeats(batches, most_pages) == (len(set(every)) < len(every))


@given(st.lists(st.one_of(sparse, dense), min_size=2, max_size=60, unique=True), st.data())
def test_one_number_too_many_is_found(every, data):
    batches = np.array_split(np.array(every, dtype=np.uint64), data.draw(st.integers(1, 8)))
    most_pages = data.draw(st.integers(1, 12))
    assert not repeats(batches, most_pages)
    again = np.array([data.draw(st.sampled_from(every))], dtype=np.uint64)
    assert repeats([*batches, again], most_pages)


@pytest.mark.parametrize("most_pages", [3, 1000])
def test_memory_is_that_of_the_pages(most_pages):
    ids = (np.arange(200, dtype=np.uint64) << np.uint64(32)) + np.uint64(5)
    found, passes = SequenceIds(10**12, most_pages), 1
    found.add(ids)
    assert found._bits.nbytes == most_pages * 4096
    while found.next_pass():
        found.add(ids)
        passes += 1
    assert not found.repeat
    assert (passes > 1) == (most_pages == 3)
