"""Progress in a log file."""

import datetime
import threading
import time
from collections.abc import Callable
from typing import Self

INTERVAL_S = 60.0
"""Seconds between the lines of a stage at work."""


class LogProgress:
    """How far the work is, in lines: how much a stage has to do, each minute how far it is, and its end.

    Args:
        write: takes each line.
        interval_s: seconds between the lines of a stage at work.
    """

    def __init__(self, write: Callable[[str], None], interval_s: float = INTERVAL_S) -> None:
        self._write, self._interval = write, interval_s
        self._lock = threading.Lock()
        self._stage = ""
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        # A thread, since a single task may take hours in which nothing else calls.
        threading.Thread(target=self._tell_at_intervals, daemon=True).start()
        return self

    def __exit__(self, error: object, *_: object) -> None:
        self._closed.set()
        self._end(failed=error is not None)

    def start(self, stage: str, total: int, unit: str, done: int = 0) -> None:
        """A stage of ``total`` units (0: unknown) begins, ``done`` of them by an earlier start."""
        self._end(failed=False)
        with self._lock:
            self._stage, self._total, self._unit, self._before = stage, total, unit, done
            self._done = self._documents = 0
            self._began = time.monotonic()
            left = f"{_amount(total - done, unit)} to do" if total else "begins"
            self._write(f"{stage}: {left}" + (f", {_amount(done, unit)} done before" if done else ""))

    def advance(self, count: int, documents: int = 0) -> None:
        """So many units are done, and with them so many documents."""
        with self._lock:
            self._done += count
            self._documents += documents

    def note(self, message: str) -> None:
        """A line of its own."""
        self._write(f"narrowbert-prep: {message}")

    def _tell_at_intervals(self) -> None:
        while not self._closed.wait(self._interval):
            with self._lock:
                if self._stage:
                    self._write(f"{self._stage}: {self._so_far(time.monotonic() - self._began)}")

    def _so_far(self, seconds: float) -> str:
        done, unit = self._before + self._done, self._unit
        size = f"{_number(done, unit)} of {_amount(self._total, unit)}" if self._total else _amount(done, unit)
        told = [size, f"{_duration(seconds)} so far"]
        if self._done:
            told += _rate(self._done, unit, self._documents, seconds)
            if self._total:
                told.append(f"about {_duration((self._total - done) * seconds / self._done)} left")
        return ", ".join(told)

    def _end(self, *, failed: bool) -> None:
        with self._lock:
            if self._stage and not failed:
                seconds = time.monotonic() - self._began
                documents = f", {self._documents:,} documents" if self._documents else ""
                rate = "".join(f", {part}" for part in _rate(self._done, self._unit, 0, seconds))
                self._write(f"{self._stage}: {_amount(self._done, self._unit)}{documents} in {seconds:.1f} s{rate}")
            self._stage = ""


def _number(count: int, unit: str) -> str:
    return f"{count / 1e6:,.1f}" if unit == "B" else f"{count:,}"


def _amount(count: int, unit: str) -> str:
    return f"{_number(count, unit)} {'MB' if unit == 'B' else unit.removesuffix('s') if count == 1 else unit}"


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def _rate(count: int, unit: str, documents: int, seconds: float) -> list[str]:
    seconds = max(seconds, 1e-3)
    rate = count / seconds
    told = [f"{rate / 1e6:.1f} MB/s" if unit == "B" else f"{rate:{',.0f' if rate >= 100 else '.3g'}} {unit}/s"]
    return [*told, f"{documents / seconds:,.0f} documents/s"] if documents else told
