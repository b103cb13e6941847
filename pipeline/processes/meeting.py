"""The ranks of a run find each other; until all are there, a rank says who is missing and can be asked to stop."""

import datetime
import os
import socket
import sys
import time

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from data_prep.contract.command_line import UserError
from pipeline.processes.signals import LostConnectionError, StoppedError, stop_requested
from pipeline.processes.world import World

_POLL_S = 0.1
_CONNECT_S = 5.0
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
        LostConnectionError: not all have come in time, or rank 0 has gone.
        UserError: rank 0's port is taken.
    """
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    wait = _Wait(world.rank, timeout_s, first_word_s, missing=f"rank 0 at {place}")
    try:
        store = _open(world, wait, timeout_s)
        _wait_for_all(store, world, wait)
    except dist.DistNetworkError as error:
        if "EADDRINUSE" in str(error):
            raise UserError(f"{place} is taken by another program: set another MASTER_PORT for all ranks") from error
        raise LostConnectionError(f"rank 0 at {place} is lost ({error}): start all ranks again") from error
    return store


class _Wait:
    """How long this rank has waited, and for whom. Nothing else waits for long: torch would not see a signal."""

    def __init__(self, rank: int, timeout_s: float, first_word_s: float, missing: str) -> None:
        self.missing = missing
        self._rank, self._timeout_s, self._word_s = rank, timeout_s, first_word_s
        self._began = time.monotonic()

    def pause(self, seconds: float) -> None:
        """Wait on for so long.

        Raises:
            StoppedError: this process was asked to stop.
            LostConnectionError: the time is over.
        """
        time.sleep(seconds)
        waited_s = time.monotonic() - self._began
        if stop_requested():
            raise StoppedError(f"asked to stop after {waited_s:.0f} s of waiting for {self.missing}")
        if waited_s >= self._timeout_s:
            raise LostConnectionError(
                f"{self.missing} did not come within {self._timeout_s:.0f} s: start all ranks again"
            )
        if waited_s >= self._word_s:
            sys.stderr.write(f"narrowbert: rank {self._rank} waits for {self.missing} ({waited_s:.0f} s)\n")
            sys.stderr.flush()
            self._word_s *= 2


def _open(world: World, wait: _Wait, timeout_s: float) -> TCPStore:
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # torchrun has a store of its own, at the same address.
    is_host = world.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    while not is_host:
        try:
            socket.create_connection((host, port), timeout=_CONNECT_S).close()
            break
        except OSError:  # nobody listens yet, or the name is not known yet
            wait.pause(_POLL_S)
    return TCPStore(
        host,
        port,
        world.size,
        is_master=is_host,
        timeout=datetime.timedelta(seconds=timeout_s),
        wait_for_workers=False,
        multi_tenant=True,
    )


def _wait_for_all(store: TCPStore, world: World, wait: _Wait) -> None:
    """Rank 0 looks for all of them, and tells the others whom it misses."""
    store.set(f"{_HERE}{world.rank}", "")
    pause_s = _POLL_S + world.size / 1000  # rank 0 answers all of them
    absent = list(range(world.size))
    while True:
        if world.rank == 0:
            absent = [rank for rank in absent if not store.check([f"{_HERE}{rank}"])]
            named = ", ".join(map(str, absent[:_NAMED])) + (" ..." if len(absent) > _NAMED else "")
            store.set(_ABSENT, f"{len(absent)} of {world.size} ranks ({named})" if absent else "")
        if store.check([_ABSENT]):
            wait.missing = store.get(_ABSENT).decode()
            if not wait.missing:
                return
        wait.pause(pause_s)
