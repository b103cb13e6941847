"""One optimizer step: forward and backward passes of its micro-batches, then the update."""

import math

import numpy as np
import torch

from pipeline.config import RunConfig
from pipeline.data.batches import Batch
from pipeline.engine.deepspeed_engine import begin_step, update_weights
from pipeline.engine.protocol import Engine
from pipeline.engine.spikes import Spikes
from pipeline.parallel.dropout_seeds import seed_dropout
from pipeline.processes.ranks import Ranks
from pipeline.processes.stragglers import OwnTime
from pipeline.schedule import learning_rate
from pipeline.training.meter import LOSS, StepSums
from pipeline.training.objective import Objective


class Trainer:
    """Does the steps of a run.

    Args:
        engine: the model in training.
        objective: the loss to minimise.
        config: of the run.
        ranks: this process among the others.
        own_time: told how long the forward passes take.
        device: of this process.
        steps_before: of earlier runs that this one continues; their dropout is not drawn again.
        spikes: which steps are skipped for standing out.
    """

    def __init__(
        self,
        engine: Engine,
        objective: Objective,
        config: RunConfig,
        ranks: Ranks,
        own_time: OwnTime,
        device: torch.device,
        steps_before: int,
        spikes: Spikes,
    ) -> None:
        self.spikes = spikes
        self._steps_before = steps_before
        self.engine, self.ranks = engine, ranks
        self.config = config
        self._objective, self._own_time, self._device = objective, own_time, device

    def step(self, batches: list[Batch], weight: float, step: int) -> StepSums:
        """Do the step that follows ``step`` steps. One whose gradients are not finite, or a spike, updates nothing.

        It still consumes its rows and its place in the learning-rate schedule, so that both follow from
        the number of the step alone.

        Args:
            batches: this rank's micro-batches.
            weight: terms of the loss of all ranks.
            step: steps done.
        """
        training = self.config.training
        # DeepSpeed averages over ranks and accumulation steps; the loss is a sum over the global
        # count of masked tokens, so the average is undone here.
        terms = self.ranks.data_parallel_size * len(batches)
        scale = float(np.float32(terms / weight)) if weight else math.inf  # a step without terms is skipped
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate(step, training.train_steps, self.config.optimizer)
        begin_step(self.engine, len(batches))
        seed_dropout(training.seed, self._steps_before + step, self.ranks.data_rank)
        sums = {LOSS: torch.zeros((), device=self._device)}
        gradient_norm = None
        rows, masked_per_row = batches[0].masked_positions.shape
        self.spikes.begin([rows * terms, masked_per_row])

        def refuses(norm: float) -> bool:
            return self.spikes.refuses(sums[LOSS], weight, norm)

        for batch in batches:
            self.ranks.reached("in the forward pass", step)
            with self._own_time.forward():
                computed = self._objective(self.engine, batch)
            self.ranks.reached("in the backward pass", step)
            self.engine.backward(computed.loss_sum * scale)
            sums[LOSS] += computed.loss_sum.detach()
            gradient_norm = update_weights(
                self.engine, self.config.optimizer.clip_grad, refuses if self.spikes.is_on else None
            )
            for name, value in computed.extra_sums.items():
                metric = f"objective/{name}"
                sums[metric] = sums.get(metric, 0.0) + value.detach()
        self._own_time.end_step()
        assert gradient_norm is not None
        return StepSums(sums=sums, weight=weight, gradient_norm=gradient_norm)
