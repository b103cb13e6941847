"""Dropout that is a function of (seed, step, rank), so that no generator state is kept."""

import contextlib
from collections.abc import Iterator

import torch

from pipeline.parallel.groups import tensor_parallel_group


def seed_dropout(seed: int, step: int, data_rank: int) -> None:
    """Seed torch from (seed, step, data rank), so that no generator state needs keeping.

    A run that resumes at a step draws the same dropout masks as the run that was never stopped.
    The tensor-parallel ranks of one data rank draw the same: what they hold whole must stay equal.
    """
    torch.manual_seed(_mix(seed, step, data_rank))


@contextlib.contextmanager
def tensor_parallel_dropout(probability: float) -> Iterator[None]:
    """Around dropout of what is partitioned: inside, every tensor-parallel rank draws numbers of its own.

    They follow from the generator's state outside and the rank, so that a layer that is computed again
    for its backward pass repeats them.
    """
    group = tensor_parallel_group()
    if group.size() == 1 or probability == 0:
        yield
        return
    base = int(torch.randint(2**62, ()))  # from the generator of the host: no waiting for a device
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        torch.manual_seed(_mix(base, group.rank(), 0))
        yield


def _mix(first: int, second: int, third: int) -> int:
    # One 64-bit mix (SplitMix64's finaliser; Steele, Lea and Flood, OOPSLA 2014) keeps the seeds
    # of neighbouring steps and ranks far apart.
    mixed = (first * 0x9E3779B97F4A7C15 + second * 0xBF58476D1CE4E5B9 + third * 0x94D049BB133111EB) % 2**64
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) % 2**64
    return (mixed ^ (mixed >> 31)) % 2**63
