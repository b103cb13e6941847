"""Sums over all ranks by recursive doubling: the rounds grow with the logarithm of the ranks.

Ranks exchange their sums with one that is 1, 2, 4, ... places away, and add what they get. After each round twice as
many share one sum. Where their number is no power of two, some first give their numbers to a neighbour, and hear the
sum from it in the end (Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication Operations in
MPICH", 2005, section 4.1). Gloo's own sum is a ring over all ranks, twice round. It needs no thread of ours, and is the
quicker one among few ranks (``RING_RANKS``).

Ranks are numbered node by node, so that the first rounds stay inside of a node.
"""

import dataclasses
import queue
import threading
from concurrent.futures import Future
from typing import Protocol

import torch
import torch.distributed as dist

RING_RANKS = 32
"""Up to so many ranks gloo's ring is quicker than our rounds, by benchmarks/scale.py."""


class Sum(Protocol):
    """A sum that has begun."""

    def result(self) -> torch.Tensor:
        """The sum once all ranks have begun it.

        Raises:
            RuntimeError: the group has failed.
        """
        ...


class GroupSum(Protocol):
    """Adds up numbers over the ranks of a gloo group, one sum after the other; all ranks get the same bits."""

    def begin(self, numbers: torch.Tensor) -> Sum:
        """Begin a sum of tensors of one shape and type; every rank begins the same ones in the same order.

        The caller leaves the tensor to the sum.
        """
        ...

    def close(self) -> None:
        """No other sum will begin."""
        ...


def group_sum(group: dist.ProcessGroup) -> GroupSum:
    """The way to add that suits the number of the group's ranks."""
    return RingSum(group) if group.size() <= RING_RANKS else DoublingSum(group)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exchanges:
    """Whom one rank speaks to in a sum."""

    gives_to: int | None
    """The neighbour that adds for this rank, which then has no partners."""
    takes_from: int | None
    """The neighbour that this rank adds for."""
    partners: tuple[int, ...]
    """With whom it exchanges sums, round after round."""


def exchanges(rank: int, size: int) -> Exchanges:
    """Whom ``rank`` of ``size`` ranks speaks to."""
    adding = 1 << (size.bit_length() - 1)  # the largest power of two
    paired = 2 * (size - adding)  # the first ranks, two and two: the odd one adds for both
    if rank < paired and rank % 2 == 0:
        return Exchanges(gives_to=rank + 1, takes_from=None, partners=())
    place = rank // 2 if rank < paired else rank - paired // 2
    partners = (place ^ (1 << step) for step in range(adding.bit_length() - 1))
    return Exchanges(
        gives_to=None,
        takes_from=rank - 1 if rank < paired else None,
        partners=tuple(2 * other + 1 if 2 * other < paired else other + paired // 2 for other in partners),
    )


class RingSum:
    """Gloo's own sum."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group

    def begin(self, numbers: torch.Tensor) -> "_RingResult":
        """See ``GroupSum.begin``."""
        work = dist.all_reduce(numbers, group=self._group, async_op=True)
        assert work is not None
        return _RingResult(work, numbers)

    def close(self) -> None:
        """Nothing is open."""


@dataclasses.dataclass(frozen=True)
class _RingResult:
    work: dist.Work
    numbers: torch.Tensor

    def result(self) -> torch.Tensor:
        self.work.wait()
        return self.numbers


class DoublingSum:
    """Recursive doubling, in a thread that waits for the others. One wait takes at most the group's time limit."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._exchanges = exchanges(group.rank(), group.size())
        self._asked: queue.SimpleQueue[tuple[torch.Tensor, Future[torch.Tensor]] | None] = queue.SimpleQueue()
        # A daemon: what ends a process must not wait for other ranks.
        threading.Thread(target=self._answer, name="sums over ranks", daemon=True).start()

    def begin(self, numbers: torch.Tensor) -> Future[torch.Tensor]:
        """See ``GroupSum.begin``. After the group's first failure no sum works any more."""
        future: Future[torch.Tensor] = Future()
        self._asked.put((numbers, future))
        return future

    def close(self) -> None:
        """End the thread once the sums that have begun are there."""
        self._asked.put(None)

    def _answer(self) -> None:
        failure = None
        while (asked := self._asked.get()) is not None:
            numbers, future = asked
            if failure is None:
                try:
                    self._add(numbers)
                except RuntimeError as error:  # of torch.distributed
                    failure = error
            if failure is None:
                future.set_result(numbers)
            else:
                future.set_exception(failure)

    def _add(self, numbers: torch.Tensor) -> None:
        """Replace the numbers of this rank by the sum."""
        others = torch.empty_like(numbers)
        way = self._exchanges
        if way.takes_from is not None:
            self._receive(others, way.takes_from)
            numbers += others
        for partner in way.partners:
            sent = dist.isend(numbers, group=self._group, group_dst=partner)
            self._receive(others, partner)
            assert sent is not None
            sent.wait()  # before the numbers change
            numbers += others
        if way.takes_from is not None:
            dist.send(numbers, group=self._group, group_dst=way.takes_from)
        if way.gives_to is not None:
            dist.send(numbers, group=self._group, group_dst=way.gives_to)
            self._receive(numbers, way.gives_to)

    def _receive(self, numbers: torch.Tensor, rank: int) -> None:
        dist.recv(numbers, group=self._group, group_src=rank)
