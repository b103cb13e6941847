"""The order of the rows: even shares, every row once per epoch of its folder, few readers of a chunk on any number of
processes."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.order import Deal, RowOrder, StepOrder, interleaved, lanes_of, variants_of_epochs

SEED = st.integers(0, 2**40)
SHARES = st.lists(st.integers(1, 60), min_size=1, max_size=6)


def order_of(
    sizes: Sequence[int], shares: Sequence[int], rows_of_step: int, chunk: int = 7, seed: int = 1
) -> StepOrder:
    """A mixture of folders of so many rows, in chunks of ``chunk``."""
    folders = [np.array([chunk] * (size // chunk) + [size % chunk] * (size % chunk > 0)) for size in sizes]
    orders = [
        RowOrder(rows, f"hash {number}", seed, lanes)
        for number, (rows, lanes) in enumerate(zip(folders, lanes_of(shares, rows_of_step), strict=True))
    ]
    return StepOrder(Deal(shares), orders, rows_of_step)


@st.composite
def folders(draw: st.DrawFn) -> tuple[list[int], list[int], int]:
    """Rows of each folder, some in windows and some not, their shares, and the rows of a step."""
    shares = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    sizes = draw(st.lists(st.integers(1, 60) | st.integers(4097, 6000), min_size=len(shares), max_size=len(shares)))
    return sizes, shares, draw(st.integers(1, 40) | st.integers(3000, 9000))


@given(folders(), SEED)
@settings(max_examples=30, deadline=None)
def test_every_row_comes_once_per_epoch_of_its_folder(given: tuple[list[int], list[int], int], seed: int) -> None:
    sizes, shares, rows_of_step = given
    order = order_of(sizes, shares, rows_of_step, seed=seed)
    steps = -(-3 * max(size * sum(shares) // share for size, share in zip(sizes, shares, strict=True)) // rows_of_step)
    steps = min(steps, 1 + 20_000 // rows_of_step, 1000)
    found, epochs, chunks, rows = order.locate(np.arange(steps * rows_of_step))
    for folder, size in enumerate(sizes):
        flat, epoch = (7 * chunks + rows)[found == folder], epochs[found == folder]
        dealt = Deal(shares).rows_dealt(steps * rows_of_step)[folder]
        assert len(flat) == dealt
        for whole in range(dealt // size):
            assert np.array_equal(np.sort(flat[epoch == whole]), np.arange(size))
        rest = flat[epoch == dealt // size]
        assert len(rest) == len(np.unique(rest)) == dealt % size


@given(SHARES, st.integers(0, 10**12))
@settings(max_examples=60, deadline=None)
def test_every_folder_has_its_share_of_any_number_of_rows(shares: list[int], position: int) -> None:
    deal, total = Deal(shares), sum(shares)
    dealt = deal.rows_dealt(position)
    assert dealt.sum() == position
    for rows, share in zip(dealt.tolist(), shares, strict=True):
        assert abs(rows * total - position * share) <= len(shares) * total
    assert np.array_equal(deal.rows_dealt(total * 10**6), np.array(shares) * 10**6)
    turns = deal.rows_dealt(position + 1) - dealt
    assert sorted(turns.tolist()) == [0] * (len(shares) - 1) + [1]


@given(folders(), st.integers(0, 300), st.data())
@settings(max_examples=20, deadline=None)
def test_any_number_of_processes_computes_the_same_step(
    given: tuple[list[int], list[int], int], step: int, data: st.DataObject
) -> None:
    sizes, shares, rows_of_step = given
    divisors = [number for number in range(1, rows_of_step + 1) if rows_of_step % number == 0]
    processes = data.draw(st.sampled_from([number for number in divisors if number <= 64]))
    whole = np.stack(order_of(sizes, shares, rows_of_step).locate(step * rows_of_step + np.arange(rows_of_step)))
    order, first = order_of(sizes, shares, rows_of_step), step * rows_of_step
    parts = [
        order.positions_of_process(first, rows_of_step, data_rank=rank, data_parallel_size=processes)
        for rank in range(processes)
    ]
    assert {len(part) for part in parts} == {rows_of_step // processes}
    assert np.array_equal(np.concatenate([order.locate(part) for part in parts], axis=1), whole)


def readers_of_a_chunk(shares: Sequence[int], processes: int, rows_of_process: int, chunks: int, steps: int) -> float:
    """How many processes read a chunk, in the mean, where every folder has so many chunks of 32 rows."""
    rows_of_step = processes * rows_of_process
    order = order_of([32 * chunks] * len(shares), shares, rows_of_step, chunk=32)
    positions = np.arange(steps * rows_of_step)
    folder, epoch, chunk, _ = order.locate(positions)
    keys = (epoch * len(shares) + folder) * chunks + chunk
    ranks = np.empty_like(positions)
    for rank in range(processes):
        own = order.positions_of_process(0, rows_of_step, data_rank=rank, data_parallel_size=processes)
        ranks[(np.arange(steps)[:, None] * rows_of_step + own).ravel()] = rank
    return len(np.unique(keys * processes + ranks)) / len(np.unique(keys))


@given(
    st.sampled_from([1, 2, 3, 8, 64, 96, 100, 256, 1000, 1024, 4096]) | st.integers(1, 4096),
    st.lists(st.integers(1, 20), min_size=1, max_size=4),
    st.integers(8, 30),
)
@settings(max_examples=25, deadline=None)
def test_at_most_two_processes_read_a_chunk_in_the_mean(processes: int, shares: list[int], rows: int) -> None:
    steps = max(2, 400_000 // (processes * rows))
    assert readers_of_a_chunk(shares, processes, rows, chunks=30_000, steps=min(steps, 300)) <= 2.0


def test_order_changes_with_seed_data_epoch_and_rows_of_a_step() -> None:
    def rows(root_hash: str = "a", seed: int = 1, first: int = 0, lanes: int = 8) -> list[int]:
        _, chunks, rows = RowOrder(np.array([5000, 5000]), root_hash, seed, lanes).locate(np.arange(first, first + 50))
        return (5000 * chunks + rows).tolist()

    assert rows() == rows()
    assert all(rows() != other for other in (rows(seed=2), rows("b"), rows(first=10_000), rows(lanes=16)))
    # A run that was started by an earlier version must go on with the same rows.
    assert rows()[:8] == [5666, 7236, 7594, 9049, 1015, 2367, 3594, 4186]
    assert [int(n) for n in order_of([60, 70], [3, 1], 8).locate(np.arange(16))[3]] == [
        3,
        0,
        1,
        1,
        2,
        1,
        5,
        2,
        6,
        1,
        4,
        5,
        6,
        2,
        4,
        3,
    ]


@pytest.mark.parametrize("size", [2, 60, 4096, 5000])
def test_rows_are_shuffled_among_their_window(size: int) -> None:
    order = RowOrder(np.full(size // 2, 2), "hash", 1, 4)
    found = [
        2 * chunks + rows for _, chunks, rows in (order.locate(np.arange(e * size, (e + 1) * size)) for e in (0, 1))
    ]
    if size > 2:
        assert (found[0] == found[1]).sum() < 8  # another order in the next epoch
        neighbours = (np.diff(found[0][::4]) == 1).sum()
        assert neighbours < 8


def test_the_processes_share_rows_without_gap_or_overlap() -> None:
    shares = [interleaved(100, 12, data_rank=rank, data_parallel_size=3).tolist() for rank in range(3)]
    assert shares[1] == [101, 104, 107, 110]
    assert sorted(position for share in shares for position in share) == list(range(100, 112))


def test_each_epoch_takes_the_next_mask_variant() -> None:
    assert variants_of_epochs(np.arange(7), np.array([3] * 6 + [1])).tolist() == [0, 1, 2, 0, 1, 2, 0]
