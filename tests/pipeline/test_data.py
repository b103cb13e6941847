import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.shards import ShardFolder
from pipeline import data
from pipeline.data import RowOrder, TrainingData, validation_batches

CHUNKS = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@given(CHUNKS, st.integers(0, 2**40))
@settings(max_examples=40, deadline=None)
def test_every_row_comes_exactly_once_an_epoch(chunk_rows: list[int], seed: int) -> None:
    order = RowOrder(np.array(chunk_rows), "hash", seed)
    epochs, chunks, rows = order.locate(np.arange(3 * order.num_rows))
    flat = np.concatenate([[0], np.cumsum(chunk_rows)])[chunks] + rows
    for epoch in range(3):
        assert sorted(flat[epochs == epoch]) == list(range(order.num_rows))


def test_lanes_and_windows_still_cover_every_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # Reason for the patch: the real window would need a million rows to give many lanes.
    monkeypatch.setattr(data, "WINDOW_ROWS", 16)
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


@pytest.mark.parametrize("size", [1, 2, 4])
def test_processes_share_the_same_global_batch(shards: ShardFolder, size: int) -> None:
    def step_ids(data_parallel_size: int, consumed: int) -> list[int]:
        by_rank = [
            TrainingData(
                shards, seed=5, global_batch_size=16, micro_batch_size=4, data_rank=rank,
                data_parallel_size=data_parallel_size,
            ).step(consumed)
            for rank in range(data_parallel_size)
        ]  # fmt: skip
        return sorted(int(i) for batches in by_rank for batch in batches for i in batch.sequence_ids)

    for consumed in (0, 16, 160, 1600):  # 1600 is several epochs on
        assert step_ids(size, consumed) == step_ids(1, consumed)


def test_batches_hold_the_rows_of_the_shards(shards: ShardFolder) -> None:
    split = shards.split("train")
    (batch,) = TrainingData(shards, seed=5, global_batch_size=64, micro_batch_size=64).step(0)
    rows = {}
    for chunk in range(len(split.chunk_rows)):
        arrays = split.chunk(chunk)
        for row, sequence_id in enumerate(arrays["sequence_ids"]):
            rows[int(sequence_id)] = {
                name: array[row] for name, array in arrays.items() if len(array) == split.chunk_rows[chunk]
            }
    for b, sequence_id in enumerate(batch.sequence_ids):
        row = rows[int(sequence_id)]
        expected = row["input_ids"].astype(int).copy()
        count = int(row["num_masked"][0])
        for slot in range(count):  # variant 0 in epoch 0
            position = row["masked_positions"][0, slot]
            assert batch.masked_positions[b, slot] == position
            assert batch.labels[b, slot] == row["input_ids"][position]
            expected[position] = row["replacement_ids"][0, slot]
        assert batch.input_ids[b].tolist() == expected.tolist()
        assert batch.label_mask[b].tolist() == [True] * count + [False] * (shards.masked_per_row - count)
        if batch.key_mask is not None:
            assert batch.key_mask[b, 0, 0].sum() == row["lengths"]


def test_documents_begin_at_the_boundaries_of_the_shards(shards: ShardFolder) -> None:
    split = shards.split("train")
    (batch,) = TrainingData(shards, seed=5, global_batch_size=64, micro_batch_size=64).step(0)
    begins = {}
    for chunk in range(len(split.chunk_rows)):
        arrays = split.chunk(chunk)
        for row, sequence_id in enumerate(arrays["sequence_ids"]):
            first, last = arrays["boundary_offsets"][row : row + 2]
            begins[int(sequence_id)] = arrays["boundary_positions"][first:last].tolist()
    sep = shards.special_ids["sep"]
    for b, sequence_id in enumerate(batch.sequence_ids):
        places = begins[int(sequence_id)]
        expected = [sum(place <= position for place in places) for position in range(shards.seq_length)]
        assert batch.document_ids[b].tolist() == expected
        assert all(batch.input_ids[b, place - 1] == sep for place in places)  # which belongs to the document before
    assert batch.document_ids.max() > 0, "take other shards: these rows hold one document each"


def test_epoch_selects_the_variant(shards: ShardFolder) -> None:
    rows = shards.split("train").num_rows
    data = TrainingData(shards, seed=5, global_batch_size=rows, micro_batch_size=rows)
    by_epoch = []
    for epoch in range(4):  # three variants: the fourth epoch has the first's masks again
        (batch,) = data.step(epoch * rows)
        order = np.argsort(batch.sequence_ids)
        by_epoch.append(batch.masked_positions.numpy()[order])
    assert not np.array_equal(by_epoch[0], by_epoch[1])
    assert not np.array_equal(by_epoch[1], by_epoch[2])
    assert np.array_equal(by_epoch[0], by_epoch[3])


def test_validation_is_shared_without_overlap(shards: ShardFolder) -> None:
    def ids(max_rows: int, rank: int, size: int) -> list[int]:
        batches = validation_batches(
            shards, max_rows=max_rows, micro_batch_size=3, data_rank=rank, data_parallel_size=size
        )
        batches = list(batches)
        assert len({batch.input_ids.shape for batch in batches}) == 1
        return [int(i) for batch in batches for i in batch.sequence_ids[batch.label_mask.any(1).numpy()]]

    total = shards.split("validation").num_rows
    assert len(set(ids(10**6, 0, 1))) == total
    assert sorted(ids(10**6, 0, 2) + ids(10**6, 1, 2)) == sorted(ids(10**6, 0, 1))
    assert ids(5, 0, 1) == ids(10**6, 0, 1)[:5]
