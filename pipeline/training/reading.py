"""The rows of each step, and the decision of all ranks to take it."""

from collections.abc import Callable
from typing import TypeVar

from data_prep.contract.command_line import UserError
from pipeline.config import TrainingConfig
from pipeline.data.batches import Batch
from pipeline.data.prefetch import Prefetcher
from pipeline.processes.agreement import Agreed, PendingAgreement
from pipeline.processes.ranks import Ranks
from pipeline.processes.stragglers import OwnTime
from pipeline.training.gauges import Gauges

T = TypeVar("T")


class RowReader:
    """Reads what this rank computes in a step, and agrees with the others on it while the step before is computed.

    Args:
        data: reads ahead.
        config: of the run.
        ranks: this process among the others.
        gauges: told how long each step waits for its rows.
        own_time: told the same.
        is_due: whether the run's decay should begin after so many steps; asked on rank 0.
    """

    def __init__(
        self,
        data: Prefetcher,
        config: TrainingConfig,
        ranks: Ranks,
        gauges: Gauges,
        own_time: OwnTime,
        is_due: Callable[[int], bool],
    ) -> None:
        self.config = config
        self._data, self._is_due = data, is_due
        self._ranks, self._gauges, self._own_time = ranks, gauges, own_time
        self._asked: tuple[list[Batch], PendingAgreement] | None = None

    def read(self, step: int) -> tuple[list[Batch], Agreed]:
        """Read this rank's micro-batches of the step that follows ``step`` steps, and ask for those of the next one.

        Of a signal that comes while a step is computed, the others are told before the next one is.

        Returns:
            The micro-batches, and what all ranks have agreed on: whether to stop before the step, and its weight.

        Raises:
            UserError: on every rank, if any cannot read its rows.
        """
        batches, pending = self._asked or self._ask(step, step)
        self._asked = None
        agreed = self._ranks.agreed(pending, step)
        if not agreed.stop and step + 1 < self.config.train_steps:
            self._asked = self._ask(step + 1, step)
        return batches, agreed

    def _ask(self, step: int, done: int) -> tuple[list[Batch], PendingAgreement]:
        self._ranks.reached("reading rows", done)
        with self._gauges.data_wait(), self._own_time.host():
            rows, problem = try_to_read(lambda: self._data.step(step))
        if rows is None:
            return [], self._ranks.begin_agreement(problem)
        is_due = self._ranks.is_main and self._is_due(step)
        return rows.batches, self._ranks.begin_agreement("", rows.weight, decay=is_due)

    def end(self) -> None:
        """Wait for the agreement that is under way, if the steps end before it is asked for; every rank calls this."""
        if self._asked is not None:
            self._asked[1].wait()
            self._asked = None

    def close(self) -> None:
        """Read ahead no further."""
        self._data.close()


def try_to_read(read: Callable[[], T]) -> tuple[T | None, str]:
    """Return what was read, or why it could not be: the other ranks wait to hear of it."""
    try:
        return read(), ""
    except UserError as error:
        return None, str(error)
