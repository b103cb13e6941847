"""The figures of the steps between two logs."""

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from pipeline.config import RunConfig
from pipeline.data.mixture import Mixture
from pipeline.engine.optimizer import learning_rate
from pipeline.parallel.groups import data_parallel_group


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
        self._config, self._tokens_a_step = config, config.training.global_batch_size * shards.seq_length
        self._losses: list[torch.Tensor] = []
        self._masked: list[torch.Tensor] = []
        self._gradient_norms: list[Any] = []
        self._seconds = 0.0
        self._started = time.perf_counter()

    @property
    def has_steps(self) -> bool:
        """Whether there is anything to flush."""
        return bool(self._losses)

    def add(self, loss_sum: torch.Tensor, global_masked: torch.Tensor, gradient_norm: Any) -> None:
        """One step's loss sum on this rank, and the masked tokens and gradient norm of all."""
        self._losses.append(loss_sum)
        self._masked.append(global_masked)
        self._gradient_norms.append(gradient_norm)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of an evaluation or a checkpoint."""
        self._seconds += time.perf_counter() - self._started
        yield
        self._started = time.perf_counter()

    def flush(self, step: int, engine: Any) -> dict[int, dict[str, float]]:
        """Metrics by step for the steps since the last flush; ``step`` is the newest of them."""
        sums = torch.stack(self._losses).double()
        dist.all_reduce(sums, group=data_parallel_group())
        losses = (sums / torch.stack(self._masked)).tolist()
        now = time.perf_counter()
        seconds = (self._seconds + now - self._started) / len(losses)
        self._seconds, self._started = 0.0, now
        first = step - len(losses) + 1
        norms = [float(norm) for norm in self._gradient_norms]
        for norm in norms:
            self._skipped_in_a_row = 0 if math.isfinite(norm) else self._skipped_in_a_row + 1
            self.skipped_steps += not math.isfinite(norm)
            self.longest_skipped = max(self.longest_skipped, self._skipped_in_a_row)
        self._losses, self._masked, self._gradient_norms = [], [], []
        points = {first + i: {"train/loss": loss} for i, loss in enumerate(losses)}
        points[step] |= {
            "train/learning_rate": learning_rate(step - 1, self._config.training.train_steps, self._config.optimizer),
            "train/gradient_norm": norms[-1],
            "train/skipped_steps": float(self.skipped_steps),
            "train/step_seconds": seconds,
            "train/tokens_per_second": self._tokens_a_step / seconds,
            "train/tokens": float(step * self._tokens_a_step),
        }
        if engine.fp16_enabled():
            points[step]["train/loss_scale"] = float(engine.optimizer.loss_scale)
        return points
