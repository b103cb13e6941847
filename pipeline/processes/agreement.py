"""What all ranks decide together."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from data_prep.contract.command_line import UserError
from pipeline.processes.group_sum import Sum, group_sum
from pipeline.processes.signals import LostConnectionError, stop_requested

T = TypeVar("T")


def from_rank_0(compute: Callable[[], T]) -> T:
    """What rank 0 computes, on every rank; each calls this.

    Raises:
        UserError: on every rank, where rank 0 raises it.
    """
    answer: list[T | UserError | None] = [None]
    if dist.get_rank() == 0:
        try:
            answer = [compute()]
        except UserError as error:
            answer = [error]
    dist.broadcast_object_list(answer, src=0)
    if isinstance(answer[0], UserError):
        raise answer[0]
    return cast(T, answer[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreed:
    """What all ranks know after an agreement."""

    problem: str
    """Of the first rank that has one; empty if none has."""
    stop: bool
    """Whether any rank was asked to stop."""
    decay: bool
    """Whether any rank wants the decay of the learning rate to begin."""
    weight: float
    """The sum of all ranks'."""


class PendingAgreement:
    """An agreement that is under way; see ``Agreement.begin``."""

    def __init__(self, agreement: "Agreement", problem: str, sums: Sum) -> None:
        self._agreement, self._problem, self._sums = agreement, problem, sums

    def wait(self) -> Agreed:
        """What all ranks know; every rank calls this at the same point of a step.

        Raises:
            LostConnectionError: the ranks cannot talk to each other any more.
        """
        problems, stops, decays, weight = result_of(self._sums).tolist()
        problem = self._problem
        if problems:
            problem = next(text for text in self._agreement.gather(problem) if text)
        # Alone, this process also knows of a signal that has come since.
        stop = bool(stops) or (self._agreement.is_alone and stop_requested())
        return Agreed(problem=problem, stop=stop, decay=bool(decays), weight=weight)


class Agreement:
    """What all ranks decide together, over a gloo group of its own: on CUDA the device does not wait for it."""

    def __init__(self) -> None:
        self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        self._size = dist.get_world_size()
        self._sum = group_sum(self._group) if self._size > 1 else None
        self.is_alone = self._sum is None
        """Whether there is no other rank."""

    def begin(self, problem: str, weight: float = 0.0, *, decay: bool = False) -> PendingAgreement:
        """Tell the others without waiting for them; every rank calls this at the same point of a step.

        Args:
            problem: what went wrong on this rank; empty if nothing did.
            weight: a number to add to those of the other ranks, in fp64.
            decay: whether this rank wants the decay of the learning rate to begin.
        """
        # One sum for all of it: what it costs is the way to the other ranks.
        numbers = [float(bool(problem)), float(stop_requested()), float(decay), weight]
        return PendingAgreement(self, problem, self._begin_sum(numbers))

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank. Rare: it goes round all ranks."""
        values: list[T | None] = [None] * self._size
        dist.all_gather_object(values, value, group=self._group)
        return cast(list[T], values)

    def gather_number(self, value: float) -> list[float]:
        """Every rank's number, by rank, in as many rounds as ``begin``.

        Raises:
            LostConnectionError: the ranks cannot talk to each other any more.
        """
        numbers = [0.0] * self._size
        numbers[dist.get_rank(self._group)] = value
        return result_of(self._begin_sum(numbers)).tolist()

    def close(self) -> None:
        """Nothing else will be agreed on."""
        if self._sum is not None:
            self._sum.close()

    def _begin_sum(self, numbers: list[float]) -> Sum:
        mine = torch.tensor(numbers, dtype=torch.float64)
        if self._sum is not None:
            return self._sum.begin(mine)
        future: Future[torch.Tensor] = Future()
        future.set_result(mine)
        return future


def result_of(sums: Sum) -> torch.Tensor:
    """The sums, once they are there.

    Raises:
        LostConnectionError: the ranks cannot talk to each other any more.
    """
    try:
        return sums.result()
    except RuntimeError as error:
        raise LostConnectionError(
            f"the ranks lost each other while they agreed on a step ({error}): run the same command again to resume "
            "from the last checkpoint"
        ) from error
