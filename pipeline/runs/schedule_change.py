"""Whether a run may go on under another schedule: only where no step that is done would have had another rate."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.contract.command_line import UserError, config_as_dict
from pipeline.config import SCHEDULE_CHANGES, OptimizerConfig, RunConfig
from pipeline.data.row_schedule import RowSchedule, first_other_rows
from pipeline.model.arithmetic import RowShape
from pipeline.runs.records import read_points
from pipeline.schedule import decay_begin, first_other_rate, warmup_steps


def check_schedule_change(run_dir: Path, stored: Mapping[str, Any], config: RunConfig, shape: RowShape) -> None:
    """Refuse another schedule where a step that is done would have had another rate or other rows.

    Args:
        run_dir: of the run.
        stored: its configuration so far, with dotted keys.
        config: the one that it is to go on with.
        shape: of the rows in its shards.

    Raises:
        UserError: naming the first such step.
    """
    steps_done = _steps_done(run_dir)
    what = ", ".join(changes_of_schedule(stored, config))
    if config.training.train_steps < steps_done:
        raise UserError(f"run_dir {run_dir} has done {steps_done} steps ({what}): give at least as many train_steps")
    _check_rows(run_dir, what, steps_done, _rows_there(stored, config, shape), RowSchedule(config.training, shape))
    names = {field.name for field in dataclasses.fields(OptimizerConfig)}
    settings = {name: stored[f"optimizer.{name}"] for name in names}
    there = (stored["training.train_steps"], OptimizerConfig(**settings))
    here = (config.training.train_steps, config.optimizer)
    other = first_other_rate(steps_done, there, here)
    if other is not None:
        step, old, new = other
        raise UserError(
            f"run_dir {run_dir} holds a run of another schedule ({what}), and {steps_done} of its steps are done: step "
            f"{step + 1} had the learning rate {old:.6g} and would have {new:.6g}; only what lies ahead may change: "
            + _remedy(steps_done, there, here)
        )


def _rows_there(stored: Mapping[str, Any], config: RunConfig, shape: RowShape) -> RowSchedule:
    """The schedule of rows that the run has had so far."""
    settings = {name: stored[f"training.{name}"] for name in ("train_steps", "mask_rate", "batch_warmup")}
    return RowSchedule(dataclasses.replace(config.training, **settings), shape)


def _check_rows(run_dir: Path, what: str, steps_done: int, there: RowSchedule, here: RowSchedule) -> None:
    step = first_other_rows(steps_done, there, here)
    if step is not None:
        old, new = (f"{one.rows(step)} rows of {one.masked_per_row(step)} masked positions" for one in (there, here))
        raise UserError(
            f"run_dir {run_dir} holds a run of another schedule ({what}), and {steps_done} of its steps are done: step "
            f"{step + 1} had {old} and would have {new}; only what lies ahead may change: let training.mask_rate and "
            f"batch_warmup begin as the run's, and differ from step {steps_done} on, or give another --run_dir"
        )


def _remedy(steps_done: int, there: tuple[int, OptimizerConfig], here: tuple[int, OptimizerConfig]) -> str:
    """Settings that leave the rates of the steps that are done as they were, if there are any."""
    warmup, (train_steps, optimizer) = warmup_steps(*there), here
    if decay_begin(*there) < steps_done:
        return "the run's decay has begun, so give the schedule that it had, or another --run_dir"
    if warmup >= train_steps:
        return f"give more than {warmup} train_steps, the run's warm-up, or another --run_dir"
    settings = f"give optimizer.lr_warmup_steps {warmup}"
    if optimizer.lr_decay_style != "constant":
        longest = math.floor(1000 * (train_steps - steps_done) / train_steps) / 1000
        settings += f" and optimizer.lr_decay_fraction {longest} or less"
    return f"{settings}, or another --run_dir"


def changes_of_schedule(stored: Mapping[str, Any], config: RunConfig) -> list[str]:
    """Each key of the schedule that differs from a run's stored configuration, with both values."""
    sections = config_as_dict(config)
    return [
        f"{key} {stored[key]} -> {value}"
        for key in sorted(SCHEDULE_CHANGES)
        if (value := sections[key.split(".")[0]][key.split(".")[1]]) != stored[key]
    ]


def _steps_done(run_dir: Path) -> int:
    """Steps that a run has recorded or saved."""
    saved = [int(name) for path in run_dir.glob("checkpoints/step-*") if (name := path.name[5:]).isdigit()]
    return max([*saved, *(point.step for point in read_points(run_dir))], default=0)
