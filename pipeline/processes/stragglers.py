"""The time that a rank spends on work of its own, and the ranks that need more of it than the others."""

import contextlib
import logging
import statistics
import time
from collections.abc import Iterator

import torch

log = logging.getLogger("narrowbert")

STRAGGLER_RATIO = 1.5
STRAGGLER_LOGS = 3
STRAGGLER_STEPS = 4
"""Fewest steps between two comparisons of the ranks: a log after every step must not ask all of them each time."""


class OwnTime:
    """Seconds that this rank itself needs: its rows and its forward passes, where it waits for nobody.

    A step takes as long on every rank, since they wait for each other in the backward pass. (Split layers
    and split weights wait in the forward pass as well: there only slow reading tells ranks apart.)
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self.steps = 0
        """Steps since ``mean_and_reset`` was called."""

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """Times a forward pass; on CUDA the device's time, without waiting for it."""
        if self._on_cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
        else:
            with self.host():
                yield

    @contextlib.contextmanager
    def host(self) -> Iterator[None]:
        """Times what the host does."""
        started = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - started

    def end_step(self) -> None:
        """One more step is done."""
        self.steps += 1

    def mean_and_reset(self) -> float:
        """Mean seconds per step since the last call. Call where the device has been waited for."""
        seconds = self._seconds + sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
        mean = seconds / max(self.steps, 1)
        self._seconds, self._events, self.steps = 0.0, [], 0
        return mean


class Stragglers:
    """Which rank the others wait for, log after log."""

    def __init__(self) -> None:
        self._slowest: int | None = None
        self._logs = 0

    def update(self, own_seconds: list[float], step_seconds: float) -> tuple[float, int | None]:
        """The figures of one log.

        Args:
            own_seconds: ``OwnTime.mean_and_reset`` of every rank.
            step_seconds: of the step as a whole.

        Returns:
            Slowest own time over the median one; and a rank, in the log that makes it a straggler: it has been
            ``STRAGGLER_RATIO`` times slower than the median, at a cost of a tenth of the step, in
            ``STRAGGLER_LOGS`` logs in a row.
        """
        median = statistics.median_low(own_seconds)
        slowest = max(range(len(own_seconds)), key=own_seconds.__getitem__)
        ratio = own_seconds[slowest] / max(median, 1e-9)
        slow = ratio >= STRAGGLER_RATIO and own_seconds[slowest] - median >= 0.1 * step_seconds
        self._logs = (self._logs + 1 if slowest == self._slowest else 1) if slow else 0
        self._slowest = slowest
        return ratio, slowest if self._logs == STRAGGLER_LOGS else None
