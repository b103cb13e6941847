"""What the records of a run say of it."""

import bisect
import dataclasses
import functools
import statistics
from pathlib import Path
from typing import Any

from data_prep.contract.command_line import UserError
from data_prep.contract.redaction import redact
from pipeline.config import ModelConfig, TrainingConfig
from pipeline.data.row_schedule import RowSchedule
from pipeline.model.arithmetic import RowShape, predicted_speedup_of_rows
from pipeline.runs.ancestry import Averaged, Parent
from pipeline.runs.directory import flatten, read_run_config, read_run_record
from pipeline.runs.records import Event, Point, read_events, read_points


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunHistory:
    """What a run's directory says of it, in the form that comparisons need."""

    name: str
    """The run directory's last part."""
    lineage_id: str
    """The run, over all its starts."""
    origin: Averaged | Parent | None
    """The checkpoint that it began at; of averaged weights, the last that went in."""
    steps_before: int
    """Steps of the runs that it grew out of."""
    tokens_before: int
    """Tokens of theirs."""
    layout: str
    """Of the encoder."""
    config: dict[str, Any]
    """The resolved configuration, flattened."""
    finished: bool
    """Whether it did its last step."""
    rows: RowSchedule
    """Of its steps."""
    seq_length: int
    """Tokens of a row."""
    limit: float
    """Speed-up over its own control that the arithmetic allows, over all its steps."""
    points: list[Point]
    """The spool, in order of steps."""
    events: list[Event]
    """Starts and faults, oldest first."""

    def series(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of a metric."""
        return [(point.step, point.metrics[key]) for point in self.points if key in point.metrics]

    def tokens(self, step: int) -> int:
        """Tokens that the first ``step`` steps read, over all processes."""
        return self.rows.rows_before(step) * self.seq_length

    def starts(self) -> list[Event]:
        """The start of each attempt."""
        return [event for event in self.events if event["kind"] == "start"]

    @functools.cached_property
    def attempts(self) -> list[tuple[int, int]]:
        """(start, last sign of life) of each attempt, milliseconds since 1970."""
        begins = [event["timestamp_ms"] for event in self.starts()]
        times = sorted(point.timestamp_ms for point in self.points)
        if not begins or (times and times[0] < begins[0]):
            begins = [times[0] if times else 0, *begins]
        ends = [*(bisect.bisect_left(times, begin) for begin in begins[1:]), len(times)]
        return [(begin, max([begin, *times[max(end - 1, 0) : end]])) for begin, end in zip(begins, ends, strict=True)]

    def training_seconds(self, timestamp_ms: int) -> float:
        """Wall time of the run up to a moment, without the gaps between its attempts."""
        spent = sum(min(end, timestamp_ms) - begin for begin, end in self.attempts if begin <= timestamp_ms)
        return spent / 1000

    def median_rate(self) -> float | None:
        """Tokens per second: the median over the run's logs, so that a slow start does not count."""
        rates = [value for _, value in self.series("train/tokens_per_second")]
        return statistics.median(rates) if rates else None


def read_history(run_dir: Path) -> RunHistory:
    """Read a run.

    Raises:
        UserError: the folder is no run, or a file of it is damaged.
    """
    config = redact(read_run_config(run_dir))
    record = read_run_record(run_dir)
    data, parent, averaged = record["data"], record.get("parent"), record.get("averaged_from")
    try:
        model, training = ModelConfig(**config["model"]), TrainingConfig(**config["training"])
        shape = RowShape(
            seq_length=data["seq_length"], masked_per_row=data["masked_per_row"], vocab_size=data["vocab_size"]
        )
        rows = RowSchedule(training, shape)
    except (KeyError, TypeError) as error:
        raise UserError(f"{run_dir} was written by another version of narrowbert: {error}") from error
    return RunHistory(
        name=run_dir.resolve().name,
        lineage_id=record["lineage_id"],
        origin=averaged[-1] if averaged else parent,
        steps_before=parent["steps"] if parent else 0,
        tokens_before=parent["tokens"] if parent else 0,
        layout=model.layout,
        config=flatten(config),
        finished=(run_dir / "DONE").exists(),
        rows=rows,
        seq_length=shape.seq_length,
        limit=predicted_speedup_of_rows(model, rows.rows_by_shape()),
        points=sorted(read_points(run_dir), key=lambda point: point.step),
        events=read_events(run_dir),
    )
