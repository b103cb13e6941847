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


class Workers:
    """Runs tasks in order in ``num_workers`` processes; one worker is this process itself."""

    def __init__(self, num_workers: int) -> None:
        self._count = num_workers or _usable_cores()
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        _one_thread()
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(self, task: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """``task(item)`` of every item, in their order, with at most two items a worker under way."""
        if self._count == 1 or len(items) < 2:
            yield from map(task, items)
            return
        if self._pool is None:
            # Spawned, not forked: threads of the tokenizer do not survive a fork.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(
                self._count, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),)
            )
        waiting: list[Future[Result]] = []
        try:
            for item in items:
                waiting.append(self._pool.submit(task, item))
                running = [future for future in waiting if not future.done()]
                if len(running) >= 2 * self._count:
                    wait(running, return_when=FIRST_COMPLETED)
                while waiting and waiting[0].done():
                    yield waiting.pop(0).result()
            for future in waiting:
                yield future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed, most often for want of memory: try a smaller --num_workers"
            ) from error


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
