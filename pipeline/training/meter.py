"""The figures of the steps between two logs."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist

from pipeline.config import RunConfig
from pipeline.data.mixture import Mixture
from pipeline.data.row_schedule import RowSchedule
from pipeline.engine.protocol import Engine
from pipeline.parallel.groups import data_parallel_group
from pipeline.schedule import learning_rate

LOSS = "train/loss"
"""Metric of the sum that an objective differentiates."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepSums:
    """What one step leaves to be recorded; tensors stay on the device."""

    sums: dict[str, torch.Tensor]
    """Scalars of this rank by metric, added over its micro-batches; one of them is ``LOSS``."""
    weight: float
    """What the sums of all ranks are divided by."""
    gradient_norm: torch.Tensor | float
    """Of all ranks, before clipping; not finite where the update was skipped."""


class Meter:
    """Collects losses, gradient norms and times between two logs; reads the device only when flushed.

    Args:
        config: of the run.
        shards: what it reads.
        skipped_steps: steps skipped so far, before a resume.
    """

    def __init__(self, config: RunConfig, shards: Mixture, skipped_steps: int) -> None:
        self.skipped_steps = skipped_steps
        self.longest_skipped = 0
        self._skipped_in_a_row = 0
        self.config, self._seq_length = config, shards.seq_length
        self._schedule = RowSchedule(config.training, shards.row_shape)
        self._steps: list[StepSums] = []
        self._seconds = 0.0
        self._started = time.perf_counter()

    @property
    def has_steps(self) -> bool:
        """Whether there is anything to flush."""
        return bool(self._steps)

    def add(self, step: StepSums) -> None:
        """Remember one step's sums."""
        self._steps.append(step)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of an evaluation or a checkpoint."""
        self._seconds += time.perf_counter() - self._started
        yield
        self._started = time.perf_counter()

    def flush(self, step: int, engine: Engine) -> dict[int, dict[str, float]]:
        """Metrics by step for the steps since the last flush; ``step`` is the newest of them."""
        steps, self._steps = self._steps, []
        means = _means(steps)
        now = time.perf_counter()
        seconds = (self._seconds + now - self._started) / len(steps)
        self._seconds, self._started = 0.0, now
        norms = [float(one.gradient_norm) for one in steps]
        for norm in norms:
            self._skipped_in_a_row = 0 if math.isfinite(norm) else self._skipped_in_a_row + 1
            self.skipped_steps += not math.isfinite(norm)
            self.longest_skipped = max(self.longest_skipped, self._skipped_in_a_row)
        first = step - len(steps) + 1
        rows = self._schedule.rows_before(step) - self._schedule.rows_before(first - 1)
        points = {first + i: metrics for i, metrics in enumerate(means)}
        points[step] |= {
            "train/learning_rate": learning_rate(step - 1, self.config.training.train_steps, self.config.optimizer),
            "train/gradient_norm": norms[-1],
            "train/skipped_steps": float(self.skipped_steps),
            "train/step_seconds": seconds,
            "train/tokens_per_second": rows * self._seq_length / (seconds * len(steps)),
            "train/tokens": float(self._schedule.rows_before(step) * self._seq_length),
        }
        if engine.fp16_enabled():
            points[step]["train/loss_scale"] = float(engine.optimizer.loss_scale)
        return points


def _means(steps: list[StepSums]) -> list[dict[str, float]]:
    """Each step's sums over all ranks, divided by its weight; every rank calls this."""
    names = list(steps[0].sums)
    sums = torch.stack([one.sums[name] for name in names for one in steps]).double()
    dist.all_reduce(sums, group=data_parallel_group())
    weights = torch.tensor([one.weight for one in steps], dtype=torch.float64)
    means = (sums.view(len(names), len(steps)).cpu() / weights).tolist()
    return [{name: means[i][j] for i, name in enumerate(names)} for j in range(len(steps))]
