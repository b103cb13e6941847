"""The learning rate of every step, against tables made by hand and against what must hold for any setting."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.contract.command_line import UserError
from pipeline.config import OptimizerConfig, RunConfig, TrainingConfig
from pipeline.config_checks import check_config
from pipeline.schedule import decay_begin, first_other_rate, learning_rate, warmup_steps

styles = st.sampled_from(["linear", "cosine", "sqrt", "constant"])


@st.composite
def schedules(draw: st.DrawFn) -> tuple[int, OptimizerConfig]:
    """train_steps, settings."""
    train_steps = draw(st.integers(1, 200))
    return train_steps, OptimizerConfig(
        lr=1.0,
        min_lr=draw(st.floats(0, 1)),
        lr_decay_style=draw(styles),
        lr_decay_fraction=draw(st.floats(0, 1)),
        lr_warmup_fraction=draw(st.floats(0, 0.9)),
        lr_warmup_steps=draw(st.none() | st.integers(0, train_steps - 1)),
    )


def test_rates_are_those_of_tables_made_by_hand() -> None:
    tables = {
        ("linear", 1.0): [1.0, 2.0, 2.0, 1.8125, 1.625, 1.4375, 1.25, 1.0625, 0.875, 0.6875, 0.5],
        ("linear", 0.4): [1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.625, 1.25, 0.875, 0.5],
        ("sqrt", 0.4): [1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.25, 0.5 + 1.5 * (1 - math.sqrt(0.5)),
                        0.5 + 1.5 * (1 - math.sqrt(0.75)), 0.5],
        ("cosine", 0.4): [1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 0.5 + 0.75 * (1 + math.sqrt(0.5)), 1.25,
                          0.5 + 0.75 * (1 - math.sqrt(0.5)), 0.5],
        ("sqrt", 0.0): [1.0, *[2.0] * 10],
    }  # fmt: skip
    for (style, fraction), table in tables.items():
        config = OptimizerConfig(
            lr=2.0, min_lr=0.5, lr_warmup_steps=2, lr_decay_style=style, lr_decay_fraction=fraction  # type: ignore[arg-type]
        )  # fmt: skip
        assert [learning_rate(step, 10, config) for step in range(11)] == pytest.approx(table), (style, fraction)
    constant = OptimizerConfig(lr=2.0, lr_warmup_fraction=0.15, lr_decay_style="constant")
    assert [learning_rate(step, 10, constant) for step in range(11)] == [1.0, *[2.0] * 10]
    assert learning_rate(0, 10, OptimizerConfig(lr=1.0, lr_warmup_fraction=0.0)) == 1.0


@given(schedules())
def test_a_rate_rises_stays_and_falls(schedule: tuple[int, OptimizerConfig]) -> None:
    train_steps, config = schedule
    rates = [learning_rate(step, train_steps, config) for step in range(train_steps)]
    warmup, begin = warmup_steps(train_steps, config), decay_begin(train_steps, config)
    assert 0 <= warmup <= begin <= train_steps
    assert all(0 < rate <= config.lr for rate in rates[:warmup])
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:begin] == [config.lr] * (begin - warmup)
    assert rates[begin:] == sorted(rates[begin:], reverse=True)
    assert all(config.min_lr <= rate for rate in rates[begin:])


@given(schedules(), st.integers(1, 200))
def test_in_the_stable_phase_length_and_decay_may_change(schedule: tuple[int, OptimizerConfig], longer: int) -> None:
    train_steps, config = schedule
    config = dataclasses.replace(config, lr_warmup_steps=warmup_steps(train_steps, config))
    there = (train_steps, config)
    here = (train_steps + longer, dataclasses.replace(config, lr_decay_style="sqrt", lr_decay_fraction=0.0))
    stable = decay_begin(train_steps, config)
    assert first_other_rate(stable, there, here) is None
    other = first_other_rate(train_steps, there, here)
    rates = [(learning_rate(step, *there), learning_rate(step, *here)) for step in range(train_steps)]
    expected = [(step, *pair) for step, pair in enumerate(rates) if pair[0] != pair[1]]
    assert other == (expected[0] if expected else None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr_decay_fraction": 1.5}, "lr_decay_fraction is 1.5: give a number from 0 to 1"),
        ({"lr_warmup_steps": 10}, "lr_warmup_steps is 10: give a number of at least 0 and below training.train_steps"),
        ({"lr_warmup_steps": -1}, "lr_warmup_steps is -1"),
        ({"lr_decay_style": "constant", "min_lr": 1e-5}, "min_lr does nothing with lr_decay_style constant"),
        ({"lr_decay_style": "constant", "lr_decay_fraction": 0.5}, "lr_decay_fraction does nothing"),
    ],
)
def test_schedules_that_cannot_be_are_one_line(settings: dict[str, object], message: str) -> None:
    config = RunConfig(
        optimizer=OptimizerConfig(**settings),  # type: ignore[arg-type]
        training=TrainingConfig(train_steps=10, global_batch_size=24),
    )
    with pytest.raises(UserError, match=message):
        check_config(config, world_size=1)
