"""The rows of each step, and the decision of all ranks to take it."""

from collections.abc import Callable
from typing import TypeVar

from data_prep.contract.command_line import UserError
from pipeline.data.batches import Batch
from pipeline.data.prefetch import Prefetcher
from pipeline.processes.ranks import Ranks
from pipeline.processes.stragglers import OwnTime
from pipeline.training.gauges import Gauges

T = TypeVar("T")


class RowReader:
    """Reads what this rank computes in a step.

    Args:
        data: reads ahead.
        global_batch_size: rows per step over all processes.
        ranks: this process among the others.
        gauges: told how long each step waits for its rows.
        own_time: told the same.
    """

    def __init__(
        self, data: Prefetcher, global_batch_size: int, ranks: Ranks, gauges: Gauges, own_time: OwnTime
    ) -> None:
        self._data, self._global_batch_size = data, global_batch_size
        self._ranks, self._gauges, self._own_time = ranks, gauges, own_time

    def read(self, step: int) -> tuple[list[Batch], bool]:
        """Read this rank's micro-batches of the step that follows ``step`` steps.

        Returns:
            The micro-batches, and whether to stop before the step: the same on every rank.

        Raises:
            UserError: on every rank, if any cannot read its rows.
        """
        self._ranks.reached("reading rows", step)
        with self._gauges.data_wait(), self._own_time.host():
            batches, problem = try_to_read(lambda: self._data.step(step * self._global_batch_size))
        return batches or [], self._ranks.agree(problem, step)

    def close(self) -> None:
        """Read ahead no further."""
        self._data.close()


def try_to_read(read: Callable[[], T]) -> tuple[T | None, str]:
    """Return what was read, or why it could not be: the other ranks wait to hear of it."""
    try:
        return read(), ""
    except UserError as error:
        return None, str(error)
