import numpy as np
import pytest

from pipeline.config import TrainingConfig
from pipeline.data.batches import Batch, TrainingData, validation_batches
from pipeline.data.mixture import Mixture, open_mixture


def row_contents(batches: list[Batch]) -> list[tuple[int, bytes]]:
    """What identifies each row, its masks included; sequence ids alone are unique in their folder only."""
    return [
        (int(batch.sequence_ids[b]), batch.input_ids[b].numpy().tobytes())
        for batch in batches
        for b in range(len(batch.sequence_ids))
    ]


def in_steps_of(shards: Mixture, rows: int) -> TrainingData:
    return TrainingData(shards, TrainingConfig(global_batch_size=rows, micro_batch_size=rows), seed=5)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("folders", ["shards", "mixture"])
@pytest.mark.parametrize("order_version", [1, 2])
def test_processes_share_the_same_global_batch(
    folders: str, size: int, order_version: int, request: pytest.FixtureRequest
) -> None:
    shards = request.getfixturevalue(folders)

    def step_rows(data_parallel_size: int, step: int) -> list[tuple[int, bytes]]:
        by_rank = [
            row_contents(
                TrainingData(
                    shards, TrainingConfig(global_batch_size=16, micro_batch_size=4), seed=5, data_rank=rank,
                    data_parallel_size=data_parallel_size, order_version=order_version,
                ).step(step)
            )
            for rank in range(data_parallel_size)
        ]  # fmt: skip
        if order_version == 1:
            return [row for rows in zip(*by_rank, strict=True) for row in rows]  # ranks take turns
        return [row for rows in by_rank for row in rows]

    for step in (0, 1, 10, 100):  # 100 is several epochs on
        assert step_rows(size, step) == step_rows(1, step)


def test_a_mixture_has_the_rows_of_each_folder_with_masks_by_its_own_epoch(mixture: Mixture) -> None:
    count = 1000 * sum(mixture.shares)
    (batch,) = in_steps_of(mixture, count).step(0)
    folders = mixture.order(5, count).locate(np.arange(count))[0]
    for number, folder in enumerate(mixture.folders):
        here = np.flatnonzero(folders == number)
        assert len(here) > 3 * mixture.train_rows[number]  # so that variants repeat
        # The folder alone, read from its start, gives the same rows in the same order.
        alone = in_steps_of(open_mixture(str(folder.path), None), len(here))
        mixed_rows = np.array(row_contents([batch]), dtype=object)[here].tolist()
        assert [tuple(row) for row in mixed_rows] == row_contents(alone.step(0))


def test_batches_hold_the_rows_of_the_shards(shards: Mixture) -> None:
    split = shards.split("train")
    (batch,) = in_steps_of(shards, 64).step(0)
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


def test_documents_begin_at_the_boundaries_of_the_shards(shards: Mixture) -> None:
    split = shards.split("train")
    (batch,) = in_steps_of(shards, 64).step(0)
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


def test_epoch_selects_the_variant(shards: Mixture) -> None:
    rows = shards.split("train").num_rows
    data = in_steps_of(shards, rows)
    by_epoch = []
    for epoch in range(4):  # three variants: the fourth epoch has the first's masks again
        (batch,) = data.step(epoch)
        order = np.argsort(batch.sequence_ids)
        by_epoch.append(batch.masked_positions.numpy()[order])
    assert not np.array_equal(by_epoch[0], by_epoch[1])
    assert not np.array_equal(by_epoch[1], by_epoch[2])
    assert np.array_equal(by_epoch[0], by_epoch[3])


@pytest.mark.parametrize("folders", ["shards", "mixture"])
def test_validation_is_shared_without_overlap(folders: str, request: pytest.FixtureRequest) -> None:
    shards = request.getfixturevalue(folders)

    def rows(max_rows: int, rank: int, size: int) -> list[tuple[int, bytes]]:
        batches = validation_batches(
            shards, max_rows=max_rows, micro_batch_size=3, data_rank=rank, data_parallel_size=size
        )
        batches = list(batches)
        assert len({batch.input_ids.shape for batch in batches}) == 1
        counts = np.concatenate([batch.label_mask.any(1).numpy() for batch in batches])
        return [row for row, counts in zip(row_contents(batches), counts, strict=True) if counts]

    total = shards.split("validation").num_rows
    assert len(set(rows(10**6, 0, 1))) == total
    assert sorted(rows(10**6, 0, 2) + rows(10**6, 1, 2)) == sorted(rows(10**6, 0, 1))
    assert rows(5, 0, 1) == rows(10**6, 0, 1)[:5]
