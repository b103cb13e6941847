"""What all ranks decide together."""

import dataclasses
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from pipeline.processes.signals import stop_requested

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreed:
    """What all ranks know after an agreement."""

    problem: str
    """Of the first rank that has one; empty if none has."""
    stop: bool
    """Whether any rank was asked to stop."""
    weight: float
    """The sum of all ranks'."""


class PendingAgreement:
    """An agreement that is under way; see ``Agreement.begin``."""

    def __init__(self, agreement: "Agreement", problem: str, sums: torch.Tensor, work: dist.Work | None) -> None:
        self._agreement, self._problem, self._sums, self._work = agreement, problem, sums, work

    def wait(self) -> Agreed:
        """What all ranks know; every rank calls this at the same point of a step."""
        if self._work is not None:
            self._work.wait()
        problems, stops, weight = self._sums.tolist()
        problem = self._problem
        if problems:
            problem = next(text for text in self._agreement.gather(problem) if text)
        # Alone, this process also knows of a signal that has come since.
        return Agreed(problem=problem, stop=bool(stops) or (self._work is None and stop_requested()), weight=weight)


class Agreement:
    """What all ranks decide together, over a gloo group of its own: on CUDA the device does not wait for it."""

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo")
        self._size = dist.get_world_size()

    def begin(self, problem: str, weight: float = 0.0) -> PendingAgreement:
        """Tell the others without waiting for them; every rank calls this at the same point of a step.

        Args:
            problem: what went wrong on this rank; empty if nothing did.
            weight: a number to add to those of the other ranks, in fp64.
        """
        # One reduction for all of it: what it costs is the way round the ranks.
        sums = torch.tensor([float(bool(problem)), float(stop_requested()), weight], dtype=torch.float64)
        work = dist.all_reduce(sums, group=self._group, async_op=True) if self._size > 1 else None
        return PendingAgreement(self, problem, sums, work)

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank."""
        values: list[T | None] = [None] * self._size
        dist.all_gather_object(values, value, group=self._group)
        return cast(list[T], values)

    def gather_number(self, value: float) -> list[float]:
        """Every rank's number, by rank: in one collective, and without pickling."""
        numbers = torch.empty(self._size, dtype=torch.float64)
        dist.all_gather_into_tensor(numbers, torch.tensor([value], dtype=torch.float64), group=self._group)
        return numbers.tolist()
