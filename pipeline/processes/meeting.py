"""The ranks of a run find each other; until all are there, a rank says who is missing and can be asked to stop."""

import datetime
import os
import sys
import threading
import time

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from data_prep.contract.command_line import UserError
from pipeline.processes.signals import LostConnectionError, StoppedError, stop_requested
from pipeline.processes.world import World

_POLL_S = 0.1
_FIRST_WORD_S = 30.0
"""Ranks of one start seldom come further apart than this."""
_NAMED = 8
"""Missing ranks that a line names."""
_HERE, _ABSENT = "narrowbert/here/", "narrowbert/absent"


def meet(world: World, timeout_s: float, first_word_s: float = _FIRST_WORD_S) -> Store:
    """Wait for all ranks at MASTER_ADDR and MASTER_PORT; every rank calls this.

    Args:
        world: which of the processes this is.
        timeout_s: how long to wait.
        first_word_s: when to say for the first time, on stderr, who is missing; then after twice as long, and so on.

    Returns:
        The store through which the ranks form their groups.

    Raises:
        StoppedError: this process was asked to stop.
        LostConnectionError: not all have come in time.
        UserError: rank 0's port is taken.
    """
    meeting = _Meeting(world, timeout_s)
    # In a thread: torch waits outside of Python, where no signal is seen.
    thread = threading.Thread(target=meeting.run, name="meeting", daemon=True)
    thread.start()
    began, word_s = time.monotonic(), first_word_s
    while thread.is_alive():
        thread.join(_POLL_S)
        waited_s = time.monotonic() - began
        if stop_requested():
            raise StoppedError(f"asked to stop after {waited_s:.0f} s of waiting for {meeting.missing}")
        if waited_s >= timeout_s:
            break
        if waited_s >= word_s:
            sys.stderr.write(f"narrowbert: rank {world.rank} waits for {meeting.missing} ({waited_s:.0f} s)\n")
            sys.stderr.flush()
            word_s *= 2
    if meeting.problem is not None:
        raise meeting.problem
    if meeting.store is None:
        raise LostConnectionError(f"{meeting.missing} did not come within {timeout_s:.0f} s: start all ranks again")
    return meeting.store


class _Meeting:
    """What the thread does, and what it knows so far."""

    def __init__(self, world: World, timeout_s: float) -> None:
        self._world = world
        self._timeout = datetime.timedelta(seconds=timeout_s + 60)  # torch's own end has a page of C++ to say
        self._pause_s = 0.1 + world.size / 1000  # rank 0 answers all of them
        self.store: Store | None = None
        self.problem: Exception | None = None
        self.missing = f"rank 0 at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"

    def run(self) -> None:
        try:
            store = self._open()
            self._wait(store)
            self.store = store
        except dist.DistNetworkError as error:
            if "EADDRINUSE" in str(error):
                self.problem = UserError(
                    f"port {os.environ['MASTER_PORT']} of {os.environ['MASTER_ADDR']} is taken by another program: "
                    "set another MASTER_PORT for all ranks"
                )
            else:
                self.problem = LostConnectionError(f"{self.missing} is lost ({error}): start all ranks again")
        except Exception as error:
            self.problem = error

    def _open(self) -> TCPStore:
        # torchrun has a store of its own, at the same address.
        is_host = self._world.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        return TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            self._world.size,
            is_master=is_host,
            timeout=self._timeout,
            wait_for_workers=False,
            multi_tenant=True,
        )

    def _wait(self, store: TCPStore) -> None:
        """Rank 0 looks for all of them, and tells the others whom it misses."""
        store.set(f"{_HERE}{self._world.rank}", "")
        absent = list(range(self._world.size))
        while absent:
            if self._world.rank == 0:
                absent = [rank for rank in absent if not store.check([f"{_HERE}{rank}"])]
                named = ", ".join(map(str, absent[:_NAMED])) + (" ..." if len(absent) > _NAMED else "")
                store.set(_ABSENT, f"{len(absent)} of {self._world.size} ranks ({named})" if absent else "")
            if store.check([_ABSENT]):
                text = store.get(_ABSENT).decode()
                if not text:
                    return
                self.missing = text
            time.sleep(self._pause_s)
