import dataclasses
import json
import math
import os
import signal
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import OptimizerConfig, RunConfig, TrainingConfig
from pipeline.runs.records import read_events, read_points
from pipeline.runs.time_budget import TimeBudget, end_of, with_end
from pipeline.schedule import decay_begin, learning_rate
from tests.processes import TINY_RUN, run_command, start_command, user_error, wait_until


def configuration(share: float = 0.2, **values: Any) -> RunConfig:
    optimizer = OptimizerConfig(lr_decay_style="sqrt", lr_decay_fraction=share, lr_warmup_fraction=0.01)
    return RunConfig(optimizer=optimizer, training=TrainingConfig(**{"train_steps": 10_000, **values}))


@given(
    share=st.floats(0.01, 0.95),
    part=st.floats(0, 1),
    style=st.sampled_from(["linear", "cosine", "sqrt"]),
)
def test_the_rates_before_the_decay_stay_and_the_decay_has_its_share(
    share: float, part: float, style: Literal["linear", "cosine", "sqrt"]
) -> None:
    config = configuration(share)
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, lr_decay_style=style))
    step = 100 + int(part * (decay_begin(10_000, config.optimizer) - 101))  # anywhere in the stable phase
    end = end_of(config, step)
    fixed = with_end(config, end)
    steps = fixed.training.train_steps
    assert decay_begin(steps, fixed.optimizer) == step
    assert step / steps == pytest.approx(1 - share, abs=1.0 / steps)
    assert steps <= 10_001
    for done in (0, 50, 99, 100, step - 1):
        assert learning_rate(done, steps, fixed.optimizer) == learning_rate(done, 10_000, config.optimizer)
    assert learning_rate(step, steps, fixed.optimizer) == config.optimizer.lr
    assert learning_rate(steps, steps, fixed.optimizer) == 0.0


def test_the_decay_is_due_when_its_share_of_the_time_is_left() -> None:
    config = configuration(time_budget_hours=1.0)
    early, late = TimeBudget(config, 2870.0), TimeBudget(config, 2881.0)
    assert not early.is_due(5000)
    assert late.is_due(5000)
    assert late.is_due(100)
    assert not late.is_due(99), "in the warm-up"
    assert not late.is_due(8000), "the decay has begun"
    assert not TimeBudget(configuration(), 1e9).is_due(5000)


@pytest.mark.slow
def test_a_run_ends_in_time_and_a_resume_follows_the_record(tmp_path: Path, shard_folder: Path) -> None:
    run_dir = tmp_path / "run"
    argv = [
        "train", *TINY_RUN, "--run_dir", str(run_dir), "--data.path", str(shard_folder), "--processes", "2",
        "--training.precision", "fp32", "--training.train_steps", "1000000", "--training.save_interval", "1000000",
        "--training.time_budget_hours", str(20 / 3600), "--optimizer.lr_decay_fraction", "0.5",
        "--optimizer.lr_warmup_steps", "3", "--optimizer.lr_decay_style", "linear",
    ]  # fmt: skip
    started = start_command("pipeline", *argv)
    record = run_dir / "run.json"
    wait_until(lambda: record.exists() and "fixed_end" in record.read_text(), started, "the end is fixed")
    os.kill(started.pid, signal.SIGTERM)
    assert started.wait(120) == 85
    end = json.loads((run_dir / "run.json").read_text())["fixed_end"]
    assert end["train_steps"] == math.ceil(end["decay_begins"] / 0.5)
    # As if run.json had been torn: the checkpoint knows as well.
    (run_dir / "run.json").write_text("")
    run_command("pipeline", *argv)
    assert (run_dir / "DONE").read_text() == f"{end['train_steps']} steps\n"
    rates = {
        p.step: p.metrics["train/learning_rate"] for p in read_points(run_dir) if "train/learning_rate" in p.metrics
    }
    assert len(rates) == end["train_steps"]
    lr = OptimizerConfig().lr
    decaying = end["train_steps"] - end["decay_begins"]
    for step, rate in rates.items():
        warm = min(1.0, step / 3)
        left = min(1.0, (end["train_steps"] - step + 1) / decaying)
        assert rate == pytest.approx(lr * min(warm, left)), step
    assert [event["step"] for event in read_events(run_dir) if event["kind"] == "time budget"] == [end["decay_begins"]]
    assert "is finished: nothing to do" in run_command("pipeline", *argv).stdout


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--training.time_budget_hours", "-1"], "training.time_budget_hours is -1.0: give a number above 0"),
        (["--training.time_budget_hours", "2"], "an optimizer.lr_decay_fraction between 0 and 1, such as 0.2"),
        (
            ["--training.time_budget_hours", "2", "--optimizer.lr_decay_style", "constant"],
            "give optimizer.lr_decay_style linear, cosine or sqrt",
        ),
    ],
)
def test_a_budget_without_a_stable_phase_is_refused(
    tmp_path: Path, shard_folder: Path, options: list[str], expected: str
) -> None:
    argv = ["train", *TINY_RUN, "--run_dir", str(tmp_path / "run"), "--data.path", str(shard_folder), *options]
    assert expected in user_error("pipeline", *argv)
