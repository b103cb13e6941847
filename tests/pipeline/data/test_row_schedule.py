"""Rows and masks of every step: sums in closed form against sums step by step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.contract.command_line import UserError
from pipeline.config import RunConfig, TrainingConfig
from pipeline.config_checks import check_config, needs_less_memory
from pipeline.data.row_schedule import RowSchedule, eval_masked_per_row
from pipeline.model.arithmetic import RowShape

SHAPE = RowShape(seq_length=100, masked_per_row=30, vocab_size=50)


def pieces(values: st.SearchStrategy[float]) -> st.SearchStrategy[tuple[tuple[int, float], ...]]:
    later = st.dictionaries(st.integers(1, 40), values, max_size=4)
    return st.tuples(values, later).map(lambda drawn: ((0, drawn[0]), *sorted(drawn[1].items())))


@given(pieces(st.sampled_from([0.3, 0.15, 0.05])), pieces(st.integers(1, 9)), st.integers(1, 50), st.integers(0, 50))
def test_sums_are_those_of_the_steps(
    rates: tuple[tuple[int, float], ...], warmup: tuple[tuple[int, int], ...], train_steps: int, first: int
) -> None:
    schedule = RowSchedule(TrainingConfig(train_steps=train_steps, mask_rate=rates, batch_warmup=warmup), SHAPE)
    for step in range(60):
        assert schedule.masked_per_row(step) == [round(100 * rate) for begin, rate in rates if begin <= step][-1]
        assert schedule.rows(step) == [rows for begin, rows in warmup if begin <= step][-1]
        assert schedule.rows_before(step) == sum(map(schedule.rows, range(step)))
        assert schedule.masked_before(step) == sum(schedule.rows(s) * schedule.masked_per_row(s) for s in range(step))
    by_shape: dict[RowShape, int] = {}
    for step in range(first, 60):
        by_shape[schedule.shape(step)] = by_shape.get(schedule.shape(step), 0) + schedule.rows(step)
    assert schedule.rows_by_shape(first, 60) == by_shape
    assert set(schedule.shapes()) == {schedule.shape(step) for step in range(train_steps)}
    masked = [shape.masked_per_row for shape in schedule.shapes()]
    assert masked == sorted(masked, reverse=True)


def test_evaluations_have_fifteen_percent_or_what_there_is() -> None:
    for masked, expected in ((30, 15), (15, 15), (8, 8)):
        shape = RowShape(seq_length=100, masked_per_row=masked, vocab_size=50)
        assert eval_masked_per_row(TrainingConfig(), shape) == expected


@pytest.mark.parametrize(
    ("settings", "processes", "message"),
    [
        ({"mask_rate": ((1, 0.3),)}, 1, r"mask_rate has steps \[1\]: begin with step 0 and let them rise"),
        ({"mask_rate": ((0, 0.3), (5, 0.2), (5, 0.1))}, 1, r"steps \[0, 5, 5\]: begin with step 0"),
        ({"mask_rate": ((0, 0.0),)}, 1, "mask_rate is 0.0: give a share of the tokens"),
        ({"mask_rate": tuple((step, 0.1) for step in range(17))}, 1, "has 17 pairs: give at most 16"),
        ({"eval_mask_rate": 1.5}, 1, "eval_mask_rate is 1.5: give a share"),
        ({"batch_warmup": ((0, 8), (5, 12))}, 1, r"steps of \[8, 12\] rows: .* up to global_batch_size \(24\)"),
        ({"batch_warmup": ((0, 48), (5, 24))}, 1, r"steps of \[48, 24\] rows"),
        ({"batch_warmup": ((2, 8), (5, 24))}, 1, r"batch_warmup has steps \[2, 5\]"),
        ({"batch_warmup": ((0, 4), (5, 24))}, 2, "batch_warmup's rows 4 is not a multiple of micro_batch_size 4 x 2"),
        ({"batch_warmup": ((0, 6), (5, 24))}, 1, "rows 6 is not a multiple .* take a micro_batch_size of 1, 2, 3, 6"),
        ({"batch_warmup": ((0, 5), (5, 24))}, 2, "with 2 processes take batch_warmup's rows of 8"),
    ],
)
def test_what_cannot_be_is_one_line(settings: dict[str, object], processes: int, message: str) -> None:
    training = TrainingConfig(global_batch_size=24, micro_batch_size=4, **settings)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        check_config(RunConfig(training=training), world_size=processes)


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_a_smaller_micro_batch_that_is_recommended_fits_the_warm_up(
    micro: int, first: int, more: int, size: int
) -> None:
    rows = micro * first * size
    training = TrainingConfig(
        global_batch_size=rows * more, micro_batch_size=micro, batch_warmup=((0, rows), (3, rows * more))
    )
    config = RunConfig(training=training)
    check_config(config, world_size=size)
    words = needs_less_memory(config, size, on_gpu=False).split()
    if "--training.micro_batch_size" in words:
        smaller = int(words[words.index("--training.micro_batch_size") + 1])
        fields = {**vars(training), "micro_batch_size": smaller}
        check_config(RunConfig(training=TrainingConfig(**fields)), world_size=size)
