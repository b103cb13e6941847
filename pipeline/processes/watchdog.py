"""A thread per rank that notices when the training hangs.

The thread tells how far its rank has come, and reads of no other node while its own rank moves.
A rank that stands still stops all of them, sooner or later, in some collective. So a rank that has not moved for
``training.hang_timeout`` seconds raises the alarm. Each rank then dumps the stacks of its threads, the one that
lags is named, and all end.
"""

import contextlib
import faulthandler
import logging
import os
import socket
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.processes.heartbeats import Heartbeat, Heartbeats
from pipeline.processes.signals import HANG_EXIT_CODE
from pipeline.processes.world import World
from pipeline.runs.attempts import Attempt
from pipeline.runs.records import append_event

log = logging.getLogger("narrowbert")

START_TIMEOUT_S = 600.0
"""Least timeout before the first step is done: imports, checkpoints and compilation take long."""

_LATER_S = 600.0


def collective_limit_s(timeout_s: float) -> float:
    """Seconds after which a collective gives up: ten minutes later than the watchdog, whose report says more."""
    return max(timeout_s, START_TIMEOUT_S) + _LATER_S


def heartbeat_interval_s(timeout_s: float) -> float:
    """Seconds between two heartbeats of a rank."""
    return min(10.0, max(0.1, timeout_s / 10))


class Watchdog:
    """One rank's watch; a context manager that starts it and, after a good end, stops it.

    After an error the watch continues until the process ends: what is closed then may hang as well, and
    the heartbeat tells the other ranks where this one was.

    Args:
        run_dir: of the run.
        world: which process this is.
        attempt: which start of the run.
        timeout_s: seconds without a move that mean a hang, once the first step is done.
    """

    def __init__(self, run_dir: Path, world: World, attempt: Attempt, timeout_s: float) -> None:
        self._run_dir, self._world, self._timeout_s = run_dir, world, timeout_s
        self._heartbeats = Heartbeats(run_dir, attempt, world.rank)
        self._interval_s = heartbeat_interval_s(timeout_s)
        self._moves, self._place, self._step = 0, "starting", 0
        self._in_start = True  # until the first step is done
        self._ticks, self._quiet_s = 0, 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        """``start``."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """``stop``, unless an error ends the run."""
        if kind is None:
            self.stop()

    def start(self) -> None:
        """Begin; folders of earlier starts are removed."""
        self._heartbeats.open()
        self._thread.start()

    def stop(self) -> None:
        """The run ends in good order."""
        self._end.set()
        self._thread.join()
        self._heartbeats.close()

    @property
    def place(self) -> str:
        """How far this rank has come, in words."""
        return f"'{self._place}' after step {self._step}"

    def reached(self, place: str, step: int) -> None:
        """This rank has come to ``place`` after ``step`` steps; called at the same points on every rank."""
        self._in_start &= step == self._step or self._moves == 0
        self._place, self._step = place, step
        self._moves += 1

    def keep_alive(self) -> None:
        """Work continues at the same place, such as writing a large file."""
        self._quiet_s = 0.0

    def _watch(self) -> None:
        last, moves = time.monotonic(), -1
        while not self._end.wait(self._interval_s):
            now = time.monotonic()
            # A process that was stopped as a whole (a suspended job) has lost no time of its own.
            self._quiet_s += min(now - last, 2 * self._interval_s)
            last = now
            if self._moves != moves:
                self._quiet_s, moves = 0.0, self._moves
            self._ticks += 1
            with contextlib.suppress(OSError):  # a full disk is not a hang
                self._beat()
            if self._quiet_s > self._limit_s() or self._heartbeats.alarm_raised():
                self._raise_alarm()

    def _limit_s(self) -> float:
        return max(self._timeout_s, START_TIMEOUT_S) if self._in_start else self._timeout_s

    def _beat(self) -> None:
        beat = Heartbeat(
            rank=self._world.rank, host=socket.gethostname(), pid=os.getpid(), moves=self._moves,
            place=self.place, ticks=self._ticks,
        )  # fmt: skip
        self._heartbeats.write(beat)

    def _raise_alarm(self) -> None:
        """Dump the stacks, name who lags, end the process."""
        self._heartbeats.raise_alarm()
        stacks = self._run_dir / "logs" / f"stacks-rank-{self._world.rank}.txt"
        with contextlib.suppress(OSError), stacks.open("w") as file:
            file.write(f"rank {self._world.rank} on {socket.gethostname()}: {self._place} after step {self._step}\n")
            file.flush()  # the dump below goes past Python's buffer
            faulthandler.dump_traceback(file, all_threads=True)
        # The others see the alarm and dump theirs; who does not get to a next tick is frozen or gone.
        before = self._heartbeats.read()
        for _ in range(5):
            time.sleep(self._interval_s)
            self._ticks += 1
            with contextlib.suppress(OSError):
                self._beat()
        after = self._heartbeats.read()
        frozen = [rank for rank in range(self._world.size) if rank not in after or after[rank] == before.get(rank)]
        living = [rank for rank in after if rank not in frozen]
        if not living or self._world.rank == min(living):
            self._report(after, frozen)
        else:
            time.sleep(2.0)  # its line comes first: our end makes whoever started us stop all ranks
        sys.stdout.flush()
        os._exit(HANG_EXIT_CODE)

    def _report(self, beats: dict[int, Heartbeat], frozen: list[int]) -> None:
        text = f"no progress for {self._limit_s():g} s: {lagging(beats, frozen)}"
        log.error(
            "%s; the stacks are in %s. The run ends; run the same command again to resume from the last checkpoint.",
            text, self._run_dir / "logs/stacks-rank-*.txt",
        )  # fmt: skip
        with contextlib.suppress(OSError):
            append_event(self._run_dir, "hang", self._step, text)


def lagging(beats: dict[int, Heartbeat], frozen: list[int]) -> str:
    """Which ranks the others wait for, in words."""

    def name(rank: int) -> str:
        beat = beats.get(rank)
        return f"rank {rank} (process {beat.pid} on {beat.host})" if beat else f"rank {rank}"

    if frozen:
        last = beats.get(frozen[0])
        where = f", last seen at {last.place}" if last else ""
        return f"{', '.join(map(name, frozen))} does not run any more (stopped, or its machine is lost){where}"
    fewest = min(beat.moves for beat in beats.values())
    behind = [rank for rank, beat in beats.items() if beat.moves == fewest]
    place = beats[behind[0]].place
    if len(behind) == len(beats):
        return f"all ranks stand at {place}"
    ahead = max(beats.values(), key=lambda beat: beat.moves).place
    return f"{', '.join(map(name, behind))} stands at {place}, the others at {ahead}"
