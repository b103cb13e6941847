import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.contract.command_line import UserError
from pipeline.data.batches import Batch, TrainingData, validation_batches
from pipeline.data.mixture import Mixture, open_mixture
from pipeline.data.order import RowOrder
from pipeline.data.prefetch import Prefetcher


def row_contents(batches: list[Batch]) -> list[tuple[int, bytes]]:
    """What identifies each row, its masks included; sequence ids alone are unique in their folder only."""
    return [
        (int(batch.sequence_ids[b]), batch.input_ids[b].numpy().tobytes())
        for batch in batches
        for b in range(len(batch.sequence_ids))
    ]


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("folders", ["shards", "mixture"])
def test_processes_share_the_same_global_batch(folders: str, size: int, request: pytest.FixtureRequest) -> None:
    shards = request.getfixturevalue(folders)

    def step_rows(data_parallel_size: int, consumed: int) -> list[tuple[int, bytes]]:
        by_rank = [
            row_contents(
                TrainingData(
                    shards, seed=5, global_batch_size=16, micro_batch_size=4, data_rank=rank,
                    data_parallel_size=data_parallel_size,
                ).step(consumed)
            )
            for rank in range(data_parallel_size)
        ]  # fmt: skip
        return [row for rows in zip(*by_rank, strict=True) for row in rows]  # ranks take turns

    for consumed in (0, 16, 160, 1600):  # 1600 is several epochs on
        assert step_rows(size, consumed) == step_rows(1, consumed)


def test_a_mixture_has_the_rows_of_each_folder_with_masks_by_its_own_epoch(mixture: Mixture) -> None:
    count = 4 * mixture.deal(5).period
    (batch,) = TrainingData(mixture, seed=5, global_batch_size=count, micro_batch_size=count).step(0)
    folders, places = mixture.deal(5).locate(np.arange(count))
    for number, folder in enumerate(mixture.folders):
        here = np.flatnonzero(folders == number)
        assert len(here) > 3 * mixture.train_rows[number]  # so that variants repeat
        # The folder alone, read from its start, gives the same rows in the same order.
        alone = TrainingData(
            open_mixture(str(folder.path), None), seed=5, global_batch_size=len(here), micro_batch_size=len(here)
        )
        assert np.array_equal(places[here], np.arange(len(here)))
        mixed_rows = np.array(row_contents([batch]), dtype=object)[here].tolist()
        assert [tuple(row) for row in mixed_rows] == row_contents(alone.step(0))


def test_batches_hold_the_rows_of_the_shards(shards: Mixture) -> None:
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


def test_documents_begin_at_the_boundaries_of_the_shards(shards: Mixture) -> None:
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


def test_epoch_selects_the_variant(shards: Mixture) -> None:
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


# ---------------------------------------------------------------------------------------- reading ahead

CPU = torch.device("cpu")


def small_steps(shards: Mixture) -> TrainingData:
    return TrainingData(shards, seed=5, global_batch_size=8, micro_batch_size=4)


def assert_same(batches: list[Batch], expected: list[Batch]) -> None:
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert batch.tensors.keys() == other.tensors.keys()
        assert all(torch.equal(batch.tensors[name], other.tensors[name]) for name in batch.tensors)
        assert np.array_equal(batch.sequence_ids, other.sequence_ids)


@given(
    num_workers=st.integers(1, 6),
    prefetch_factor=st.integers(1, 3),
    starts=st.lists(st.integers(0, 10**9), min_size=1, max_size=3),
)
@settings(max_examples=15, deadline=None)
def test_any_number_of_workers_gives_the_batches_of_the_order(
    mixture: Mixture, num_workers: int, prefetch_factor: int, starts: list[int]
) -> None:
    prefetcher = Prefetcher(small_steps(mixture), CPU, num_workers=num_workers, prefetch_factor=prefetch_factor)
    for start in starts:  # each but the first is a jump: what was read ahead is of no use
        for step in range(9):
            assert_same(prefetcher.step(start + 8 * step), small_steps(mixture).step(start + 8 * step))
    prefetcher.close()


def test_a_resume_with_more_workers_goes_on_with_the_same_rows(mixture: Mixture) -> None:
    def read(num_workers: int, first: int, last: int) -> list[int]:
        prefetcher = Prefetcher(small_steps(mixture), CPU, num_workers=num_workers, prefetch_factor=2)
        steps = [prefetcher.step(8 * step) for step in range(first, last)]
        prefetcher.close()
        return [int(i) for batches in steps for batch in batches for i in batch.sequence_ids]

    assert read(2, 0, 30) + read(5, 30, 60) == read(1, 0, 60)


def test_workers_read_side_by_side_and_ahead(shards: Mixture) -> None:
    together = threading.Barrier(3, timeout=30)
    asked: list[int] = []

    class Meeting(TrainingData):
        """Returns only when three threads are reading at once."""

        def step(self, rows_consumed: int) -> list[Batch]:
            asked.append(rows_consumed)
            together.wait()
            return super().step(rows_consumed)

    meeting = Meeting(shards, seed=5, global_batch_size=8, micro_batch_size=4)
    prefetcher = Prefetcher(meeting, CPU, num_workers=3, prefetch_factor=2)
    assert_same(prefetcher.step(80), small_steps(shards).step(80))
    assert sorted(asked)[:3] == [80, 88, 96]
    together.abort()
    prefetcher.close()


@pytest.mark.parametrize("num_workers", [1, 4])
def test_what_fails_in_reading_is_raised_at_the_step_that_asks(
    shard_folder: Path, tmp_path: Path, num_workers: int
) -> None:
    broken = tmp_path / "shards"
    shutil.copytree(shard_folder, broken)
    shards = open_mixture(str(broken), None)
    order = RowOrder(shards.split("train").chunk_rows, shards.root_hash, 5)
    steps = [set(chunks) for chunks in np.split(order.locate(np.arange(8 * 8))[1], 8)]
    failing = next(step for step in range(2, 8) if steps[step] - set().union(*steps[:step]))
    chunk = int(min(steps[failing] - set().union(*steps[:failing])))
    damage(broken, shards, chunk)

    prefetcher = Prefetcher(small_steps(shards), CPU, num_workers=num_workers, prefetch_factor=3)
    for step in range(failing):
        assert_same(prefetcher.step(8 * step), small_steps(open_mixture(str(shard_folder), None)).step(8 * step))
    for _ in range(2):  # and again, should it be asked again
        with pytest.raises(UserError, match=r"train-\d+\.tar, chunk \d+: its bytes are not those that were written"):
            prefetcher.step(8 * failing)
    prefetcher.close()


def damage(folder: Path, shards: Mixture, chunk: int) -> None:
    """Change a byte of a chunk of the training split."""
    places: list[tuple[str, dict[str, Any]]] = [
        (shard["name"], entry)
        for shard in shards.folders[0].manifest["splits"]["train"]["shards"]
        for entry in shard["chunks"]
    ]
    name, entry = places[chunk]
    content = bytearray((folder / name).read_bytes())
    content[entry["offset"] + entry["length"] - 3] ^= 1
    (folder / name).unlink()
    (folder / name).write_bytes(content)
