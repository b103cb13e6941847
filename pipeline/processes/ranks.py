"""This process among the ranks of a run, for whatever must be done together with them."""

from typing import TypeVar

import torch.distributed as dist

from data_prep.contract.command_line import UserError
from pipeline.parallel.groups import data_parallel_group, tensor_parallel_group
from pipeline.processes.agreement import Agreed, Agreement, PendingAgreement
from pipeline.processes.watchdog import Watchdog
from pipeline.processes.world import World

T = TypeVar("T")


class Ranks:
    """Which rank this is, and the ways in which all ranks act together.

    Args:
        world: which of the processes this is.
        agreement: of all ranks.
        watchdog: told how far this rank has come.
    """

    def __init__(self, world: World, agreement: Agreement, watchdog: Watchdog) -> None:
        self.world, self.watchdog = world, watchdog
        self._agreement = agreement
        self.is_main = world.rank == 0
        # The ranks of a tensor-parallel group read the same rows.
        self.data_rank = dist.get_rank(data_parallel_group())
        self.data_parallel_size = dist.get_world_size(data_parallel_group())

    def reached(self, place: str, step: int) -> None:
        """Tell the watchdog that this rank has come to ``place`` after ``step`` steps."""
        self.watchdog.reached(place, step)

    def agree(self, problem: str, step: int) -> bool:
        """Agree with all ranks, at the same point of a step.

        Args:
            problem: what went wrong on this rank; empty if nothing did.
            step: steps done.

        Returns:
            Whether any rank was asked to stop.

        Raises:
            UserError: on every rank, if any has a problem.
        """
        return self.agreed(self.begin_agreement(problem), step).stop

    def begin_agreement(self, problem: str, weight: float = 0.0, *, decay: bool = False) -> PendingAgreement:
        """Tell all ranks of a problem, if there is one, and add up the weights of those that read other rows.

        Nothing is waited for. Every rank calls this at the same point of a step.

        Args:
            problem: of this rank; empty if there is none.
            weight: of its rows.
            decay: whether this rank wants the decay of the learning rate to begin.
        """
        reads_alone = tensor_parallel_group().rank() == 0  # the others of the group have the same rows
        return self._agreement.begin(problem, weight if reads_alone else 0.0, decay=decay)

    def agreed(self, pending: PendingAgreement, step: int) -> Agreed:
        """Wait until all ranks have begun an agreement.

        Raises:
            UserError: on every rank, if any has a problem.
        """
        self.reached("waiting for the others", step)
        agreed = pending.wait()
        if agreed.problem:
            raise UserError(agreed.problem)
        return agreed

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank."""
        return self._agreement.gather(value)

    def gather_number(self, value: float) -> list[float]:
        """Every rank's number, by rank."""
        return self._agreement.gather_number(value)
