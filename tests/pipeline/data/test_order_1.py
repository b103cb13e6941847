"""Order 1, which older runs go on with: exact shares, every row once per epoch of its folder, any position at once."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import order_1
from pipeline.data.order_1 import MIN_PERIOD, Deal, MixedOrder, RowOrder

CHUNKS = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@given(CHUNKS, st.integers(0, 2**40))
@settings(max_examples=40, deadline=None)
def test_every_row_comes_exactly_once_per_epoch(chunk_rows: list[int], seed: int) -> None:
    order = RowOrder(np.array(chunk_rows), "hash", seed)
    epochs, chunks, rows = order.locate(np.arange(3 * order.num_rows))
    flat = np.concatenate([[0], np.cumsum(chunk_rows)])[chunks] + rows
    for epoch in range(3):
        assert sorted(flat[epochs == epoch]) == list(range(order.num_rows))


def test_lanes_and_windows_still_cover_every_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # Reason for the patch: the real window would need a million rows to give many lanes.
    monkeypatch.setattr(order_1, "WINDOW_ROWS", 16)
    order = RowOrder(np.array([37] * 60 + [5]), "hash", 3)
    assert order.lanes == 64
    _, chunks, rows = order.locate(np.arange(2 * order.num_rows))
    flat = 37 * chunks + rows
    assert sorted(flat[: order.num_rows]) == list(range(order.num_rows))
    assert sorted(flat[order.num_rows :]) == list(range(order.num_rows))


@given(CHUNKS, st.integers(0, 200), st.integers(1, 100))
@settings(max_examples=40, deadline=None)
def test_any_position_is_found_without_the_ones_before(chunk_rows: list[int], start: int, count: int) -> None:
    whole = RowOrder(np.array(chunk_rows), "hash", 7).locate(np.arange(start + count))
    seek = RowOrder(np.array(chunk_rows), "hash", 7).locate(np.arange(start, start + count))
    for from_whole, from_seek in zip(whole, seek, strict=True):
        assert np.array_equal(from_whole[start:], from_seek)


def test_order_changes_with_seed_data_and_epoch() -> None:
    def rows(root_hash: str, seed: int, first: int = 0) -> list[int]:
        _, chunks, rows = RowOrder(np.array([50, 50]), root_hash, seed).locate(np.arange(first, first + 100))
        return (50 * chunks + rows).tolist()

    assert rows("a", 1) == rows("a", 1)
    assert rows("a", 1) != rows("a", 2)
    assert rows("a", 1) != rows("b", 1)
    assert rows("a", 1) != rows("a", 1, first=100)
    # A run that was started by an earlier version must go on with the same rows.
    assert rows("a", 1)[:12] == [87, 30, 27, 76, 34, 21, 80, 63, 10, 46, 31, 26]


SHARES = st.lists(st.integers(1, 60), min_size=1, max_size=6)
SEED = st.integers(0, 2**40)


@given(SHARES, SEED, st.integers(0, 10**12))
@settings(max_examples=60, deadline=None)
def test_every_period_holds_exactly_the_shares(shares: list[int], seed: int, period: int) -> None:
    deal = Deal(shares, "hash", seed)
    assert deal.period >= MIN_PERIOD
    folders, places = deal.locate(np.arange(period * deal.period, (period + 1) * deal.period))
    counts = np.bincount(folders, minlength=len(shares))
    assert [Fraction(int(count), deal.period) for count in counts] == [Fraction(n, sum(shares)) for n in shares]
    for folder, count in enumerate(counts):  # the next rows of the folder, in turn
        assert np.array_equal(places[folders == folder], np.arange(period * count, (period + 1) * count))


@given(SHARES, SEED, st.integers(0, 3000), st.integers(1, 1500))
@settings(max_examples=40, deadline=None)
def test_any_position_of_a_deal_is_found_at_once(shares: list[int], seed: int, start: int, count: int) -> None:
    dealt, walk = [0] * len(shares), []
    for folder in Deal(shares, "hash", seed).locate(np.arange(start + count))[0]:
        walk.append((int(folder), dealt[folder]))
        dealt[folder] += 1
    seek = Deal(shares, "hash", seed)
    folders, places = seek.locate(np.arange(start, start + count))
    assert np.array_equal(np.stack([folders, places], axis=1), walk[start:])
    assert seek.rows_dealt(start + count).tolist() == dealt


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(10, 60)), min_size=1, max_size=3), SEED)
@settings(max_examples=40, deadline=None)
def test_every_row_comes_once_per_epoch_of_its_folder(folders: list[tuple[int, int]], seed: int) -> None:
    shares = [share for share, _ in folders]
    orders = [
        RowOrder(np.array([7] * (rows // 7) + [rows % 7] * (rows % 7 > 0)), str(rows), seed) for _, rows in folders
    ]
    order = MixedOrder(Deal(shares, "hash", seed), orders)
    count = max(2 * rows * sum(shares) // share for share, rows in folders) + MIN_PERIOD
    found, epochs, chunks, rows = order.locate(np.arange(count))
    for folder, (_, num_rows) in enumerate(folders):
        flat = (7 * chunks + rows)[found == folder]
        assert len(flat) >= 2 * num_rows
        for epoch in range(len(flat) // num_rows):
            here = slice(epoch * num_rows, (epoch + 1) * num_rows)
            assert np.array_equal(np.sort(flat[here]), np.arange(num_rows))
            assert np.all(epochs[found == folder][here] == epoch)


def test_the_order_follows_from_seed_hash_and_shares() -> None:
    def folders(shares: list[int], root_hash: str = "a", seed: int = 1, first: int = 0) -> list[int]:
        return Deal(shares, root_hash, seed).locate(np.arange(first, first + 1000))[0].tolist()

    assert folders([3, 1]) == folders([3, 1])
    others = [folders([3, 1], seed=2), folders([3, 1], "b"), folders([3, 1], first=1000), folders([1, 3])]
    assert all(other != folders([3, 1]) for other in others)
    # A run that was started by an earlier version must go on with the same rows.
    assert folders([3, 1])[:24] == [0] * 2 + [1] + [0] * 14 + [1] + [0] * 6
