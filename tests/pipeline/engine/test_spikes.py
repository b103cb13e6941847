"""Which steps count as spikes, against numpy."""

import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine.spikes import WINDOW, Spikes


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    """One process. The environment stays as it is: what comes later in this process would join a group by it."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def take(spikes: Spikes, loss: float, norm: float, rows: tuple[int, int] = (16, 5)) -> bool:
    spikes.begin(rows)
    return spikes.refuses(torch.tensor(8 * loss, dtype=torch.float64), 8.0, norm)


@given(st.integers(0, 10**6), st.sampled_from([2.0, 3.0, 6.0]))
def test_a_spike_is_so_many_deviations_above_the_steps_that_were_taken(seed: int, sigma: float) -> None:
    draws = np.random.default_rng(seed)
    steps = draws.normal(10, 1, (WINDOW + 60, 2))
    jumps = draws.random(steps.shape) < 0.05
    steps[jumps] += draws.uniform(1, 12, jumps.sum())
    steps[draws.random(steps.shape) < 0.02] -= 9  # far below is no harm
    spikes, taken = Spikes(sigma, None), []
    for number, (loss, norm) in enumerate(steps.tolist()):
        recent = np.array(taken[-WINDOW:])
        expected = len(taken) >= WINDOW and bool(
            (np.array([loss, norm]) > recent.mean(0) + sigma * recent.std(0)).any()
        )
        if number % 50 == 49:  # through a checkpoint
            spikes = Spikes(sigma, json.loads(json.dumps(spikes.history)))
        assert take(spikes, loss, norm) == expected
        assert bool(spikes.found) == expected
        if not expected:
            taken.append([loss, norm])


def test_the_words_name_what_stands_out() -> None:
    spikes = Spikes(6.0, None)
    for number in range(WINDOW):
        assert not take(spikes, 5 + number % 2, 1 + number % 2)
    assert take(spikes, 9.0, 1.5)
    assert spikes.found == "loss 9 after a mean of 5.5 and a deviation of 0.5"
    assert take(spikes, 5.5, 7.0)
    assert spikes.found == "gradient norm 7 after a mean of 1.5 and a deviation of 0.5"
    assert not take(spikes, 5.5, 1.5)
    assert spikes.found == ""


def test_other_rows_are_not_compared() -> None:
    spikes = Spikes(6.0, None)
    for number in range(WINDOW):
        take(spikes, 5 + number % 2, 1 + number % 2)
    assert take(spikes, 50.0, 1.0)
    assert not take(spikes, 50.0, 1.0, rows=(16, 3)), "of another mask rate nothing is known yet"
    assert Spikes(0.0, spikes.history).history is None
    assert not Spikes(0.0, None).is_on
