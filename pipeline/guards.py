"""What watches over a training: agreement to stop, hangs, stragglers.

Every rank has a watchdog thread. It writes how far its rank has come into ``logs/heartbeats`` and
reads nothing as long as its own rank moves on. A rank that stands still stops them all, sooner or
later, in some collective; so a rank that has not moved for ``training.hang_timeout`` seconds raises
the alarm, each dumps the stacks of its threads, the one that lags is named, and all end.
"""

import contextlib
import dataclasses
import faulthandler
import json
import logging
import os
import shutil
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline.launch import World
from pipeline.run_directory import write_atomically
from pipeline.signals import HANG_EXIT_CODE, stop_requested
from pipeline.spool import append_event

log = logging.getLogger("narrowbert")

STRAGGLER_RATIO = 1.5
STRAGGLER_LOGS = 3


class Agreement:
    """What all ranks decide together, over a gloo group of its own: on CUDA the device does not wait for it."""

    def __init__(self) -> None:
        self._group: Any = dist.new_group(backend="gloo")
        self._size = dist.get_world_size()

    def reach(self, problem: str) -> tuple[str, bool]:
        """Every rank calls this at the same point of a step.

        Args:
            problem: what went wrong on this rank; empty if nothing did.

        Returns:
            The problem of the first rank that has one, and whether any rank was asked to stop.
        """
        flags = torch.tensor([float(bool(problem)), float(stop_requested())])
        if self._size > 1:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._group)
        if flags[0]:
            problem = next(text for text in self.gather(problem) if text)
        return problem, bool(flags[1])

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank."""
        values: list[Any] = [None] * self._size
        dist.all_gather_object(values, value, group=self._group)
        return values


class OwnTime:
    """Seconds that this rank itself needs: its rows and its forward passes, where it waits for nobody.

    A step takes as long on every rank, since they wait for each other in the backward pass. (Split layers
    and split weights wait in the forward pass as well: there only slow reading tells ranks apart.)
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[Any, Any]] = []
        self._steps = 0

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """Times a forward pass; on CUDA the device's time, without waiting for it."""
        if self._on_cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
        else:
            with self.host():
                yield

    @contextlib.contextmanager
    def host(self) -> Iterator[None]:
        """Times what the host does."""
        started = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - started

    def end_step(self) -> None:
        """One more step is done."""
        self._steps += 1

    def take(self) -> float:
        """Mean seconds a step since the last call. Call where the device has been waited for."""
        seconds = self._seconds + sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
        mean = seconds / max(self._steps, 1)
        self._seconds, self._events, self._steps = 0.0, [], 0
        return mean


class Stragglers:
    """Which rank the others wait for, log after log."""

    def __init__(self) -> None:
        self._slowest: int | None = None
        self._logs = 0

    def update(self, own_seconds: list[float], step_seconds: float) -> tuple[float, int | None]:
        """The figures of one log.

        Args:
            own_seconds: ``OwnTime.take`` of every rank.
            step_seconds: of the step as a whole.

        Returns:
            Slowest own time over the median one; and a rank, in the log that makes it a straggler: it has been
            ``STRAGGLER_RATIO`` times slower than the median, at a cost of a tenth of the step, in
            ``STRAGGLER_LOGS`` logs in a row.
        """
        median = statistics.median_low(own_seconds)
        slowest = max(range(len(own_seconds)), key=own_seconds.__getitem__)
        ratio = own_seconds[slowest] / max(median, 1e-9)
        slow = ratio >= STRAGGLER_RATIO and own_seconds[slowest] - median >= 0.1 * step_seconds
        self._logs = (self._logs + 1 if slowest == self._slowest else 1) if slow else 0
        self._slowest = slowest
        return ratio, slowest if self._logs == STRAGGLER_LOGS else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Heartbeat:
    rank: int
    host: str
    pid: int
    moves: int
    """Places passed so far: the same ones in the same order on every rank."""
    place: str
    ticks: int
    """Goes up as long as the process lives and is not stopped."""


class Watchdog:
    """One rank's watch.

    Args:
        run_dir: of the run.
        world: which process this is.
        attempt: which start of the run.
        timeout_s: seconds without a move that mean a hang.
    """

    def __init__(self, run_dir: Path, world: World, attempt: int, timeout_s: float) -> None:
        self._run_dir, self._world, self._timeout_s = run_dir, world, timeout_s
        self._folder = run_dir / "logs/heartbeats" / f"start-{attempt}"
        self._interval_s = min(10.0, max(0.1, timeout_s / 10))
        self._moves, self._place, self._step = 0, "starting", 0
        self._ticks, self._quiet_s = 0, 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin; folders of earlier starts are removed."""
        if self._world.rank == 0:
            for folder in self._folder.parent.glob("start-*"):
                if folder != self._folder:
                    shutil.rmtree(folder, ignore_errors=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def stop(self) -> None:
        """The run ends in good order."""
        self._end.set()
        self._thread.join()
        self._heartbeat_path(self._world.rank).unlink(missing_ok=True)

    def move(self, place: str, step: int) -> None:
        """This rank has come to ``place`` of step ``step``; called at the same points on every rank."""
        self._place, self._step = place, step
        self._moves += 1

    def alive(self) -> None:
        """Something goes on at the same place, such as writing a large file."""
        self._quiet_s = 0.0

    def _watch(self) -> None:
        last, moves = time.monotonic(), -1
        alarm = self._folder / "hang"
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
            if self._quiet_s > self._timeout_s or alarm.exists():
                self._raise_alarm(alarm)

    def _beat(self) -> None:
        beat = _Heartbeat(
            rank=self._world.rank, host=socket.gethostname(), pid=os.getpid(), moves=self._moves,
            place=f"'{self._place}' after step {self._step}", ticks=self._ticks,
        )  # fmt: skip
        write_atomically(self._heartbeat_path(self._world.rank), json.dumps(dataclasses.asdict(beat)))

    def _heartbeat_path(self, rank: int) -> Path:
        return self._folder / f"rank-{rank}.json"

    def _raise_alarm(self, alarm: Path) -> None:
        """Dump the stacks, name who lags, end the process."""
        with contextlib.suppress(OSError):
            alarm.touch()
        stacks = self._run_dir / "logs" / f"stacks-rank-{self._world.rank}.txt"
        with contextlib.suppress(OSError), stacks.open("w") as file:
            file.write(f"rank {self._world.rank} on {socket.gethostname()}: {self._place} after step {self._step}\n")
            file.flush()  # the dump below goes past Python's buffer
            faulthandler.dump_traceback(file, all_threads=True)
        # The others see the alarm and dump theirs; who does not get to a next tick is frozen or gone.
        before = self._read_heartbeats()
        for _ in range(5):
            time.sleep(self._interval_s)
            self._ticks += 1
            with contextlib.suppress(OSError):
                self._beat()
        after = self._read_heartbeats()
        frozen = [rank for rank in range(self._world.size) if rank not in after or after[rank] == before.get(rank)]
        living = [rank for rank in after if rank not in frozen]
        if not living or self._world.rank == min(living):
            self._report(after, frozen)
        else:
            time.sleep(2.0)  # its line comes first: our end makes whoever started us stop all ranks
        sys.stdout.flush()
        os._exit(HANG_EXIT_CODE)

    def _report(self, beats: dict[int, _Heartbeat], frozen: list[int]) -> None:
        text = f"no progress for {self._timeout_s:g} s: {lagging(beats, frozen)}"
        log.error(
            "%s; the stacks are in %s. The run ends; run the same command again to go on from the last checkpoint.",
            text, self._run_dir / "logs/stacks-rank-*.txt",
        )  # fmt: skip
        with contextlib.suppress(OSError):
            append_event(self._run_dir, "hang", self._step, text)

    def _read_heartbeats(self) -> dict[int, _Heartbeat]:
        found = {}
        for rank in range(self._world.size):
            with contextlib.suppress(OSError, ValueError, TypeError):
                found[rank] = _Heartbeat(**json.loads(self._heartbeat_path(rank).read_text(encoding="utf-8")))
        return found


def lagging(beats: dict[int, _Heartbeat], frozen: list[int]) -> str:
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
