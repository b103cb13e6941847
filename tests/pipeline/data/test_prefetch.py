"""Batches read ahead by threads: the same batches, whatever the number of threads."""

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.contract.command_line import UserError
from pipeline.config import TrainingConfig
from pipeline.data.batches import Batch, TrainingData
from pipeline.data.mixture import Mixture, open_mixture
from pipeline.data.prefetch import Prefetcher
from tests.pipeline.data.damaged_shards import damage

CPU = torch.device("cpu")
STEPS_OF_8 = TrainingConfig(global_batch_size=8, micro_batch_size=4)


def small_steps(shards: Mixture) -> TrainingData:
    return TrainingData(shards, STEPS_OF_8, seed=5)


def weigh(batch: Batch) -> torch.Tensor:
    return batch.label_mask.sum()


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
    with Prefetcher(
        small_steps(mixture), weigh, CPU, num_workers=num_workers, prefetch_factor=prefetch_factor
    ) as prefetcher:
        for start in starts:  # each but the first is a jump: what was read ahead is of no use
            for step in range(9):
                assert_same(prefetcher.step(start + step).batches, small_steps(mixture).step(start + step))


def test_a_resume_with_more_workers_reads_the_same_rows(mixture: Mixture) -> None:
    def read(num_workers: int, first: int, last: int) -> list[int]:
        with Prefetcher(small_steps(mixture), weigh, CPU, num_workers=num_workers, prefetch_factor=2) as prefetcher:
            steps = [prefetcher.step(step).batches for step in range(first, last)]
        return [int(i) for batches in steps for batch in batches for i in batch.sequence_ids]

    assert read(2, 0, 30) + read(5, 30, 60) == read(1, 0, 60)


def test_workers_read_side_by_side_and_ahead(shards: Mixture) -> None:
    together = threading.Barrier(3, timeout=30)
    asked: list[int] = []

    class Meeting(TrainingData):
        """Returns only when three threads are reading at once."""

        def step(self, step: int) -> list[Batch]:
            asked.append(step)
            together.wait()
            return super().step(step)

    meeting = Meeting(shards, STEPS_OF_8, seed=5)
    prefetcher = Prefetcher(meeting, weigh, CPU, num_workers=3, prefetch_factor=2)
    assert_same(prefetcher.step(80).batches, small_steps(shards).step(80))
    assert sorted(asked)[:3] == [80, 81, 82]
    together.abort()
    prefetcher.close()


@pytest.mark.parametrize("num_workers", [1, 4])
def test_what_fails_in_reading_is_raised_at_the_step_that_asks(
    shard_folder: Path, tmp_path: Path, num_workers: int
) -> None:
    broken = tmp_path / "shards"
    shutil.copytree(shard_folder, broken)
    shards = open_mixture(str(broken), None)
    steps = [set(chunks) for chunks in np.split(shards.order(5, 8).locate(np.arange(8 * 8))[2], 8)]
    failing = next(step for step in range(2, 8) if steps[step] - set().union(*steps[:step]))
    chunk = int(min(steps[failing] - set().union(*steps[:failing])))
    damage(broken, shards, chunk)

    prefetcher = Prefetcher(small_steps(shards), weigh, CPU, num_workers=num_workers, prefetch_factor=3)
    for step in range(failing):
        rows, expected = prefetcher.step(step), small_steps(open_mixture(str(shard_folder), None)).step(step)
        assert_same(rows.batches, expected)
        assert rows.weight == sum(int(batch.label_mask.sum()) for batch in expected)
    for _ in range(2):  # and again, should it be asked again
        with pytest.raises(UserError, match=r"train-\d+\.tar, chunk \d+: its bytes are not those that were written"):
            prefetcher.step(failing)
    prefetcher.close()


def test_threads_start_with_the_first_step_and_end_with_the_block(shards: Mixture) -> None:
    def reading() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]

    for thread in reading():  # of the tests before
        thread.join(30)
    with Prefetcher(small_steps(shards), weigh, CPU, num_workers=2, prefetch_factor=1) as prefetcher:
        assert not reading()
        prefetcher.step(0)
        started = reading()
        assert started
    for thread in started:
        thread.join(30)
    assert not reading()
