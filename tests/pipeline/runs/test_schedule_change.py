"""What a refused schedule is told to give instead: taken, it is accepted."""

import dataclasses
import json
import re
import tempfile
import typing
from pathlib import Path
from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.contract.command_line import UserError, config_as_dict
from pipeline.config import OptimizerConfig, RunConfig, TrainingConfig
from pipeline.data.row_schedule import RowSchedule
from pipeline.model.arithmetic import RowShape
from pipeline.runs.directory import flatten
from pipeline.runs.schedule_change import check_schedule_change
from pipeline.schedule import decay_begin

SHAPE = RowShape(seq_length=100, masked_per_row=30, vocab_size=50)
Style = Literal["linear", "cosine", "sqrt", "constant"]


@st.composite
def runs(draw: st.DrawFn) -> RunConfig:
    style: Style = draw(st.sampled_from(typing.get_args(Style)))
    train_steps = draw(st.integers(1, 400))
    optimizer = OptimizerConfig(
        lr_decay_style=style,
        lr_decay_fraction=1.0 if style == "constant" else draw(st.floats(0, 1)),
        lr_warmup_fraction=draw(st.floats(0, 0.9)),
        lr_warmup_steps=draw(st.none() | st.integers(0, train_steps - 1)),
    )
    return RunConfig(optimizer=optimizer, training=TrainingConfig(train_steps=train_steps))


def refusal(run_dir: Path, there: RunConfig, here: RunConfig) -> str:
    """What is said against the other schedule; empty where it is accepted."""
    try:
        check_schedule_change(run_dir, flatten(config_as_dict(there)), here, SHAPE)
    except UserError as error:
        return str(error)
    return ""


@settings(deadline=None, max_examples=200)
@given(runs(), runs(), st.data())
def test_what_the_refusal_recommends_is_accepted(there: RunConfig, here: RunConfig, data: st.DataObject) -> None:
    steps_done = data.draw(st.integers(0, there.training.train_steps))
    with tempfile.TemporaryDirectory() as folder:
        point = {"step": steps_done, "timestamp_ms": 0, "metrics": {}}
        (Path(folder) / "metrics.jsonl").write_text(json.dumps(point) + "\n")
        message = refusal(Path(folder), there, here)
        for _ in range(2):  # enough for the steps that are done, and for the warm-up
            more = re.search(r"give (at least as many|more than (\d+)) train_steps", message)
            if more is None:
                break
            steps = steps_done if more[2] is None else int(more[2]) + 1
            here = dataclasses.replace(here, training=TrainingConfig(train_steps=max(1, steps)))
            message = refusal(Path(folder), there, here)
        if "the run's decay has begun" in message:
            assert decay_begin(there.training.train_steps, there.optimizer) < steps_done
            here = there
        elif message:
            found = re.search(r"give optimizer.lr_warmup_steps (\d+)(?: and \S+ (\S+) or less)?, or another", message)
            assert found, message
            fraction = here.optimizer.lr_decay_fraction if found[2] is None else float(found[2])
            optimizer = dataclasses.replace(here.optimizer, lr_warmup_steps=int(found[1]), lr_decay_fraction=fraction)
            here = dataclasses.replace(here, optimizer=optimizer)
        assert refusal(Path(folder), there, here) == ""


rates = st.lists(st.tuples(st.integers(1, 20), st.sampled_from([0.05, 0.15, 0.3])), max_size=4).map(
    lambda pairs: ((0, 0.3), *sorted({step: (step, rate) for step, rate in pairs}.values()))
)


@settings(deadline=None, max_examples=100)
@given(rates, rates, st.integers(0, 20))
def test_rates_may_change_exactly_where_no_step_that_is_done_had_another(
    there: tuple[tuple[int, float], ...], here: tuple[tuple[int, float], ...], steps_done: int
) -> None:
    old, new = (RunConfig(training=TrainingConfig(train_steps=20, mask_rate=pairs)) for pairs in (there, here))
    slots = [[RowSchedule(run.training, SHAPE).masked_per_row(step) for step in range(20)] for run in (old, new)]
    # By hand: the last pair that has begun.
    by_hand = [[[round(100 * rate) for first, rate in pairs if first <= step][-1] for step in range(20)]
               for pairs in (there, here)]  # fmt: skip
    assert slots == by_hand
    with tempfile.TemporaryDirectory() as folder:
        point = {"step": steps_done, "timestamp_ms": 0, "metrics": {}}
        (Path(folder) / "metrics.jsonl").write_text(json.dumps(point) + "\n")
        message = refusal(Path(folder), old, new)
    differ = [step for step in range(steps_done) if slots[0][step] != slots[1][step]]
    assert (
        (f"step {differ[0] + 1} had 1728 rows of {slots[0][differ[0]]} masked" in message) if differ else message == ""
    )
