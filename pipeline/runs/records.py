"""The records that a run keeps on disk: its metrics, and what happened to it.

``RUN_DIR/metrics.jsonl`` is the plain interface to a run's figures, complete whether or not MLflow
was ever reached. One JSON object per line: ``{"step": 10, "timestamp_ms": 1767225600000, "metrics":
{"train/loss": 5.1}}``. A step may have several lines; a metric of a step occurs once. Numbers are
Python's, so a loss that is not finite reads ``NaN`` or ``Infinity``. ``metric_names.METRICS`` says what
each name means. A last line without its newline is still being written.

``RUN_DIR/events.jsonl`` has starts and faults: ``{"timestamp_ms": ..., "kind": "start", "step": 0,
"text": ...}`` and whatever else belongs to the kind.
"""

import dataclasses
import json
import math
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NotRequired, TypedDict, cast

from data_prep.contract.command_line import UserError
from data_prep.contract.files import flush_to_disk, process_name
from data_prep.contract.redaction import redact

SPOOL = "metrics.jsonl"
EVENTS = "events.jsonl"


class Spool:
    """The append-only file of a run's metrics. One writer: rank 0 of the newest start.

    Opening it puts a copy of the file in its place: a start that was taken over, and wakes up inside a write,
    still holds the old file open and writes there, which nobody reads.

    Args:
        run_dir: holds the file.
        may_differ_until: as in ``Attempt``.
        check_newest: called just before the file is replaced; raises in a start that was taken over.
        tolerance: a recomputed loss may differ by this share of the recorded one.

    Raises:
        UserError: the disk is full.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        may_differ_until: Mapping[str, int] | None = None,
        check_newest: Callable[[], None] = lambda: None,
        tolerance: float = 0.0,
    ) -> None:
        self._path = run_dir / SPOOL
        self._may_differ_until = may_differ_until or {}
        self._tolerance = tolerance
        _take_over(self._path, check_newest)
        # Only what was there before this start: the memory must not grow with the run.
        self._before: dict[int, dict[str, float]] = {}
        for point in read_points(run_dir):
            self._before.setdefault(point.step, {}).update(point.metrics)
        self._newest: tuple[int, set[str]] = (-1, set())
        self._file = self._path.open("ab", buffering=0)
        self._unwritten: deque[bytes] = deque()
        self.problem = ""
        """Why the disk does not take what was last written; empty if it does."""
        self.changed: list[str] = []
        """Losses that a resume should have repeated and has not."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append metrics of optimizer step ``step`` (1 is the first), on disk against kill -9 at once.

        What the disk does not take is kept in memory, and every later call tries to write it again.

        A point that is there already, from before a resume, is kept as it is. A *loss* that differs
        from it adds a line to ``changed``, unless it may differ there: the run is not deterministic.
        """
        known = self._before.get(step, {})
        written = self._newest[1] if self._newest[0] == step else set()
        new = {}
        for key, value in metrics.items():
            if key in known:
                compared = key.endswith("/loss") and step > self._may_differ_until.get(key, -1)
                if compared and not self._is_repeated(known[key], value):
                    self.changed.append(f"{key} of step {step} is {value!r}, was {known[key]!r} before the resume")
            elif key not in written:
                new[key] = value
        if new:
            if step >= self._newest[0]:  # how a save ended is known some steps later
                self._newest = (step, written | new.keys())
            record = {"step": step, "timestamp_ms": time.time_ns() // 1_000_000, "metrics": new}
            self._unwritten.append(json.dumps(record).encode() + b"\n")
        self._try_to_write()

    def sync(self) -> None:
        """Have what was written survive a loss of power; before a checkpoint that makes it unrepeatable."""
        self._try_to_write()
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            self.problem = error.strerror or str(error)

    def has(self, step: int, key: str) -> bool:
        """Whether the metric of a step was there before this start."""
        return key in self._before.get(step, {})

    def close(self) -> None:
        """Write what is left, and close the file.

        Raises:
            UserError: the disk does not take it.
        """
        self._try_to_write()
        self._file.close()
        if self._unwritten:
            raise UserError(
                f"{self._path} cannot be written ({self.problem}), and its last {len(self._unwritten)} lines are lost: "
                "make room, then run the same command again to resume from the last checkpoint"
            )

    def _try_to_write(self) -> None:
        """No line is ever torn for a reader: half of one has no newline, and its rest comes first the next time."""
        try:
            while self._unwritten:
                rest = self._unwritten[0][self._file.write(self._unwritten[0]) :]
                if rest:
                    self._unwritten[0] = rest
                else:
                    self._unwritten.popleft()
            self.problem = ""
        except OSError as error:
            self.problem = error.strerror or str(error)

    def _is_repeated(self, before: float, now: float) -> bool:
        return repr(before) == repr(now) or math.isclose(before, now, rel_tol=self._tolerance)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One line of the spool."""

    step: int
    """Optimizer step; 0 is before the first."""
    timestamp_ms: int
    """When it was written, milliseconds since 1970."""
    metrics: dict[str, float]
    """Values by name."""


def read_points(run_dir: Path) -> list[Point]:
    """The complete lines of a run's spool, in the order of writing; empty where there is none.

    Raises:
        UserError: naming a damaged line.
    """
    path = run_dir / SPOOL
    return [parse_point(record, path, number) for number, record in _read_lines(path)]


def parse_point(line: bytes, path: Path, number: int) -> Point:
    """One line of the spool ``path``, read.

    Raises:
        UserError: the line is damaged; ``number`` is the one to name.
    """
    try:
        record = json.loads(line)
        return Point(step=record["step"], timestamp_ms=record["timestamp_ms"], metrics=dict(record["metrics"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}, line {number} is damaged: remove the line ({error})") from error


def read_metrics(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Every metric of a run as (step, value) pairs in order of step.

    Raises:
        UserError: naming a damaged line.
    """
    series: dict[str, list[tuple[int, float]]] = {}
    for point in sorted(read_points(run_dir), key=lambda point: point.step):
        for key, value in point.metrics.items():
            series.setdefault(key, []).append((point.step, value))
    return series


class Event(TypedDict):
    """One line of ``events.jsonl``."""

    timestamp_ms: int
    """When it happened, milliseconds since 1970."""
    kind: str
    """``start``, or what went wrong."""
    step: int
    """The optimizer step it happened at."""
    text: NotRequired[str]
    """One line for people."""
    attempt: NotRequired[int]
    """Of a start: its number."""
    hosts: NotRequired[list[str]]
    """Of a start: the machines."""
    job_id: NotRequired[str | None]
    """Of a start: Slurm's number of the job."""


def append_event(run_dir: Path, kind: str, step: int, text: str, **details: str | int | list[str] | None) -> None:
    """Record that something happened to the run. Rank 0 only.

    Raises:
        OSError: the file cannot be written.
    """
    write_event(run_dir, new_event(kind, step, text, **details))


def new_event(kind: str, step: int, text: str, **details: str | int | list[str] | None) -> Event:
    """Something that happens now."""
    record = {"timestamp_ms": time.time_ns() // 1_000_000, "kind": kind, "step": step, "text": text, **details}
    return cast(Event, redact(record))


def write_event(run_dir: Path, event: Event) -> None:
    """Append to ``events.jsonl``. Rank 0 only; rare, so the file is opened each time.

    Raises:
        OSError: the file cannot be written; half a line that is left is cut by the next call.
    """
    path = run_dir / EVENTS
    _cut_torn_line(path)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")


def read_events(run_dir: Path) -> list[Event]:
    """What happened to a run, oldest first; empty where nothing is recorded.

    Raises:
        UserError: naming a damaged line.
    """
    path = run_dir / EVENTS
    events: list[Event] = []
    for number, line in _read_lines(path):
        try:
            event = json.loads(line)
            required = {"timestamp_ms": event["timestamp_ms"], "kind": event["kind"], "step": event["step"]}
            events.append(cast(Event, required | event))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number} is damaged: remove the line ({error})") from error
    return events


def _not_written(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} cannot be written ({error.strerror}): fix that, then run the same command again")


def _take_over(path: Path, check_newest: Callable[[], None]) -> None:
    """Replace the file by a copy of its complete lines, which nobody else has open."""
    if not path.exists():
        check_newest()
        return
    copy = path.with_name(f".{path.name}-{process_name()}")  # two starts at once must not share it
    try:
        shutil.copyfile(path, copy)
        _cut_torn_line(copy)
        flush_to_disk(copy)  # the name must not move to a file that a power cut empties
        check_newest()
        copy.replace(path)
        flush_to_disk(path.parent)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        copy.unlink(missing_ok=True)


def _cut_torn_line(path: Path) -> None:
    """Drop a last line that a kill left half written. For the file's one writer only."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        while end:  # backwards in blocks: the file of a long run is large
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                file.truncate(start + newline + 1)
                return
            end = start
        file.truncate(0)


def _read_lines(path: Path) -> list[tuple[int, bytes]]:
    """(number, line) of the complete lines."""
    content = path.read_bytes() if path.exists() else b""
    return list(enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1))
