"""The end of a run by the hours that it may take: the decay begins so that the last step is done in time.

Until then the run is in its stable phase and need not know its end. With a decay over the share f of all steps, it
begins when 1 - f of the time is over: at the pace of the steps so far the rest then takes f. The step at which it began
is recorded, and every later start follows the record.
"""

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import TypedDict

from data_prep.contract.files import write_atomically
from pipeline.config import RunConfig
from pipeline.runs.directory import stored_record, write_config_yaml
from pipeline.schedule import decay_begin, warmup_steps


class FixedEnd(TypedDict):
    """How the time budget has ended a run's stable phase."""

    decay_begins: int
    """Steps before the first one of the decay."""
    train_steps: int
    """Steps of the whole run."""


def end_of(config: RunConfig, step: int) -> FixedEnd:
    """The end of a run whose decay begins after ``step`` steps."""
    share = config.optimizer.lr_decay_fraction
    return {"decay_begins": step, "train_steps": max(step + 1, math.ceil(step / (1 - share)))}


def with_end(config: RunConfig, end: FixedEnd) -> RunConfig:
    """The configuration whose rates are those of before up to the decay, and which then ends."""
    decaying = end["train_steps"] - end["decay_begins"]
    optimizer = dataclasses.replace(
        config.optimizer,
        lr_warmup_steps=warmup_steps(config.training.train_steps, config.optimizer),
        # Half a step less, so that no rounding makes it one step more.
        lr_decay_fraction=(decaying - 0.5) / end["train_steps"],
    )
    training = dataclasses.replace(config.training, train_steps=end["train_steps"])
    return dataclasses.replace(config, optimizer=optimizer, training=training)


def as_recorded(config: RunConfig) -> RunConfig:
    """The configuration of a start: with the end that the run's time budget has fixed, if it has."""
    end = recorded_end(config)
    return with_end(config, end) if end else config


def recorded_end(config: RunConfig) -> FixedEnd | None:
    """The end that the run's time budget has fixed."""
    if config.training.time_budget_hours is None or not config.run_dir.strip():
        return None
    return stored_record(Path(config.run_dir)).get("fixed_end")


def record_end(config: RunConfig, end: FixedEnd) -> None:
    """Write down, on rank 0 and before the first step of the decay, how a run ends.

    Args:
        config: of the run, ``with_end``.
        end: of the run.
    """
    run_dir = Path(config.run_dir)
    write_config_yaml(config)
    record = stored_record(run_dir) | {"fixed_end": end}
    write_atomically(run_dir / "run.json", json.dumps(record, indent=1) + "\n", durable=True)


class TimeBudget:
    """Watches the time of a run on rank 0.

    Args:
        config: of this start, ``as_recorded``.
        seconds_before: that earlier starts took for the steps that are done.
    """

    def __init__(self, config: RunConfig, seconds_before: float) -> None:
        self.config, self._before, self._started = config, seconds_before, time.monotonic()
        self.fixed_end = recorded_end(config)
        """The run's end, once it is fixed."""

    @property
    def seconds(self) -> float:
        """That the run has taken so far: all but what a kill has lost."""
        return self._before + time.monotonic() - self._started

    def is_due(self, step: int) -> bool:
        """Whether the decay should begin now, after ``step`` steps."""
        training, optimizer = self.config.training, self.config.optimizer
        if training.time_budget_hours is None:
            return False
        if not warmup_steps(training.train_steps, optimizer) <= step < decay_begin(training.train_steps, optimizer):
            return False
        return self.seconds >= 3600 * training.time_budget_hours * (1 - optimizer.lr_decay_fraction)
