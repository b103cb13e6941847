"""How many rows a step has, and how many of their masked positions it uses: pure functions of the step.

Imports no torch.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Sequence

from data_prep.contract.command_line import UserError
from pipeline.config import TrainingConfig
from pipeline.model.arithmetic import RowShape


class RowSchedule:
    """What the rows of each step of a run look like.

    What a pair of ``training.mask_rate`` or ``training.batch_warmup`` says stays until the step of the next, so that a
    run has few shapes.

    Args:
        training: of the run.
        shape: of the rows in the shards.

    Raises:
        UserError: a rate is above what the shards hold.
    """

    def __init__(self, training: TrainingConfig, shape: RowShape) -> None:
        self._training, self._shape = training, shape
        _check_rates(training.mask_rate, shape)
        pairs = [(step, rounded_positions(rate, shape.seq_length)) for step, rate in training.mask_rate]
        self._masked = pairs or [(0, shape.masked_per_row)]
        self._rows = list(training.batch_warmup) or [(0, training.global_batch_size)]

    def rows_before(self, step: int) -> int:
        """Rows that the steps before ``step`` consume: the position of the data after ``step`` steps."""
        ends = [*(begin for begin, _ in self._rows[1:]), step]
        return sum(rows * max(0, min(end, step) - begin) for (begin, rows), end in zip(self._rows, ends, strict=True))

    def rows(self, step: int) -> int:
        """Rows of step ``step`` (the first is 0), over all processes."""
        return _at(self._rows, step)

    def masked_per_row(self, step: int) -> int:
        """Slots for masked positions in a row of step ``step``."""
        return _at(self._masked, step)

    def shape(self, step: int) -> RowShape:
        """Of the rows of step ``step``."""
        return dataclasses.replace(self._shape, masked_per_row=self.masked_per_row(step))

    def mask_pieces(self) -> list[tuple[int, RowShape]]:
        """Each step of the run from which on rows have another number of masked positions, and their shape."""
        return [(step, self.shape(step)) for step, _ in self._masked if step < self._training.train_steps]

    def shapes(self) -> list[RowShape]:
        """The shapes that the run's steps have, each once, those of most masked positions first."""
        return sorted(self.rows_by_shape(), key=lambda shape: -shape.masked_per_row)

    def rows_by_shape(self, first: int = 0, last: int | None = None) -> dict[RowShape, int]:
        """Rows of each shape in the steps from ``first`` to before ``last`` (default: the run's), in order."""
        last = self._training.train_steps if last is None else last
        found: dict[RowShape, int] = {}
        inner = [step for step, _ in self._masked if first < step < last]
        for begin, end in itertools.pairwise([first, *inner, last]):
            shape = self.shape(begin)
            found[shape] = found.get(shape, 0) + self.rows_before(end) - self.rows_before(begin)
        return found

    def masked_before(self, step: int) -> int:
        """Slots for masked positions in the rows that the steps before ``step`` consume."""
        return sum(rows * shape.masked_per_row for shape, rows in self.rows_by_shape(0, step).items())


def rounded_positions(rate: float, seq_length: int) -> int:
    """Masked positions of a full row at a rate, as preparation rounds them; at least one."""
    return max(1, round(rate * seq_length))


def eval_masked_per_row(training: TrainingConfig, shape: RowShape) -> int:
    """Masked positions of a row in the evaluations of a run that starts now."""
    return min(shape.masked_per_row, rounded_positions(training.eval_mask_rate, shape.seq_length))


def first_other_rows(steps: int, there: RowSchedule, here: RowSchedule) -> int | None:
    """The first of ``steps`` steps that has other rows in the other schedule; None where there is none."""
    for step in range(steps):
        if (there.rows(step), there.shape(step)) != (here.rows(step), here.shape(step)):
            return step
    return None


def _at(pairs: Sequence[tuple[int, int]], step: int) -> int:
    """The value of the last pair that begins at or before ``step``."""
    return pairs[bisect.bisect_right(pairs, step, key=lambda pair: pair[0]) - 1][1]


def _check_rates(rates: Sequence[tuple[int, float]], shape: RowShape) -> None:
    for step, rate in rates:
        masked = rounded_positions(rate, shape.seq_length)
        if masked > shape.masked_per_row:
            raise UserError(
                f"training.mask_rate {rate:g} from step {step} on is {masked} of {shape.seq_length} tokens, and the "
                f"shards hold {shape.masked_per_row}, a rate of {shape.masked_per_row / shape.seq_length:.4g}: give at "
                "most that, or prepare shards with a larger mask.probability"
            )
