"""Worker processes that run tasks in order."""

import ctypes
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

_PR_SET_PDEATHSIG = 1  # Linux, prctl(2)


class WorkerKilled(UserError):
    """A worker process has died. What was under way in it and its pool is lost, what had ended is not."""

    def __init__(self) -> None:
        super().__init__("a worker process was killed, most often for want of memory: try a smaller --num_workers")


class Workers:
    """Runs tasks in order in ``num_workers`` processes.

    Args:
        num_workers: how many; 0 takes the cores that this process may use.
        apart: never run a task in this process. Without it one worker, and a task alone, are this process itself.
    """

    def __init__(self, num_workers: int, *, apart: bool = False) -> None:
        self._count = num_workers or _usable_cores()
        self._apart = apart
        self._pool: ProcessPoolExecutor | None = None

    @property
    def most_under_way(self) -> int:
        """Tasks that a killed worker can take along."""
        return 2 * self._count

    def __enter__(self) -> "Workers":
        _one_thread()
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(self, task: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """``task(item)`` of every item, in their order, with at most two items a worker under way.

        Raises:
            WorkerKilled: a worker process has died.
        """
        if not self._apart and (self._count == 1 or len(items) < 2):
            yield from map(task, items)
            return
        if self._pool is None:
            self._pool = _new_pool(self._count)
        waiting: list[Future[Result]] = []
        try:
            for item in items:
                waiting.append(self._pool.submit(task, item))
                running = [future for future in waiting if not future.done()]
                if len(running) >= self.most_under_way:
                    wait(running, return_when=FIRST_COMPLETED)
                while waiting and waiting[0].done():
                    yield waiting.pop(0).result()
            for future in waiting:
                yield future.result()
        except BrokenProcessPool as error:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
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
