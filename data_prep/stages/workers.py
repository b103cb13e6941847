"""Worker processes that run tasks in order."""

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from data_prep.contract.command_line import UserError

Item = TypeVar("Item")

Result = TypeVar("Result")

_LOG = logging.getLogger(__name__)
_PR_SET_PDEATHSIG = 1  # Linux, prctl(2)
_KILLED = "a worker process was killed, most often for want of memory"


class WorkerKilled(UserError):
    """A worker process has died. What was under way in it and its pool is lost, what had ended is not."""

    def __init__(self, message: str = f"{_KILLED}: try a smaller --num_workers") -> None:
        super().__init__(message)


class Workers:
    """Runs tasks in order in ``num_workers`` processes. Where one is killed, half as many go on.

    Args:
        num_workers: how many; 0 takes the cores that this process may use.
        apart: never run a task in this process. Without it one worker, and a task alone, are this process itself.
        own_threads: leave the tokenizer's threads of this process as they are; those of the workers are one each.
        note: told when fewer workers go on.
    """

    def __init__(
        self,
        num_workers: int,
        *,
        apart: bool = False,
        own_threads: bool = False,
        note: Callable[[str], None] = _LOG.warning,
    ) -> None:
        self._count = num_workers or _usable_cores()
        self._only_here = self._count == 1 and not apart
        self._apart = apart
        self._own_threads = own_threads
        self._note = note
        self._pool: ProcessPoolExecutor | None = None

    @property
    def most_under_way(self) -> int:
        """Tasks that a killed worker can take along."""
        return 2 * self._count

    def __enter__(self) -> "Workers":
        if not self._own_threads:
            _one_thread()
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(self, task: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """``task(item)`` of every item, in their order, with at most two items a worker under way.

        An item runs again where its worker, or another of the same pool, was killed before it ended.

        Raises:
            WorkerKilled: a worker process was killed twice at one item while it was the only one; with ``apart``, a
                worker process has died.
        """
        if self._only_here or (len(items) < 2 and not self._apart):
            yield from map(task, items)
            return
        finished: dict[int, Result] = {}
        given, killed_at = 0, -1
        while given < len(items):
            try:
                for result in self._run_in_pool(task, items, given, finished):
                    given += 1
                    yield result
            except WorkerKilled as error:
                if self._apart:
                    raise
                # A worker alone takes the items in their order: it was killed at the first that is not finished.
                at = next(number for number in range(given, len(items)) if number not in finished)
                if self._count == 1 and at == killed_at:
                    raise WorkerKilled(
                        f"{_KILLED}, twice at the same task though no other ran beside it: give this machine or job "
                        "more memory; the same command goes on from here"
                    ) from error
                killed_at = at if self._count == 1 else -1
                self._count = max(1, self._count // 2)
                self._note(f"{_KILLED}: going on with {self._count}")

    def _run_in_pool(
        self, task: Callable[[Item], Result], items: Sequence[Item], first: int, finished: dict[int, Result]
    ) -> Iterator[Result]:
        """Results from item ``first`` on. Those that had ended when a worker died are in ``finished`` then."""
        self._pool = self._pool or _new_pool(self._count)
        waiting: dict[int, Future[Result]] = {}
        try:
            for number in range(first, len(items)):
                if number in finished:
                    waiting[number] = Future()
                    waiting[number].set_result(finished.pop(number))
                else:
                    waiting[number] = self._pool.submit(task, items[number])
                running = [future for future in waiting.values() if not future.done()]
                if len(running) >= self.most_under_way:
                    wait(running, return_when=FIRST_COMPLETED)
                while waiting and waiting[oldest := next(iter(waiting))].done():
                    result = waiting[oldest].result()
                    del waiting[oldest]
                    yield result
            for oldest in list(waiting):
                result = waiting[oldest].result()
                del waiting[oldest]
                yield result
        except BrokenProcessPool as error:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
            finished |= {
                number: future.result()
                for number, future in waiting.items()
                if future.done() and not future.cancelled() and future.exception() is None
            }
            raise WorkerKilled from error

    def halve(self) -> None:
        """Go on with half as many workers, at least one."""
        self._count = max(1, self._count // 2)

    def run_alone(self, task: Callable[[Item], Result], item: Item) -> Result:
        """``task(item)`` in a process of its own, with no other task beside it.

        Raises:
            WorkerKilled: that process has died.
        """
        with _new_pool(1) as pool:
            try:
                return pool.submit(task, item).result()
            except BrokenProcessPool as error:
                raise WorkerKilled from error


def _new_pool(count: int) -> ProcessPoolExecutor:
    # Spawned, not forked: threads of the tokenizer do not survive a fork.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),))


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _start_worker(parent: int) -> None:
    """In a new worker: one thread, and no life beyond that of the process that started it."""
    _one_thread()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before this was set
            os.kill(os.getpid(), signal.SIGKILL)


def _one_thread() -> None:
    """Keep the tokenizer's own threads from competing with the worker processes."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
