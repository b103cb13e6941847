"""SIGTERM and SIGUSR1 mean: save and end soon. Imports nothing heavy: it comes first in a process."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send before a time limit or a preemption."""

REQUEUE_EXIT_CODE = 85
"""The run has saved what it did and wants to be started again."""

HANG_EXIT_CODE = 86
"""The watchdog has ended the run."""

LOST_CONNECTION_EXIT_CODE = 1
"""Of any failure that is no mistake of the user's: the same command resumes the run."""


class StoppedError(Exception):
    """This process was asked to stop where it had nothing to save; the message says what it waited for."""


class LostConnectionError(Exception):
    """A group of ranks cannot talk to each other any more; only new processes can."""


_stop_requested = False


def catch_stop_signals(forward: Callable[[int], None] = lambda _: None) -> None:
    """Make such a signal set ``stop_requested`` and nothing else, however often it comes.

    Args:
        forward: called with the signal's number, for a process that has others to tell.
    """

    def handle(number: int, _: FrameType | None) -> None:
        global _stop_requested
        _stop_requested = True
        forward(number)

    for number in STOP_SIGNALS:
        signal.signal(number, handle)
    if _stop_requested:
        forward(signal.SIGTERM)  # it came before there was anybody to tell
    # A launcher holds them back until here (hold_stop_signals): none is lost while Python starts.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def ignore_stop_signals() -> None:
    """At the end of a process, when nothing is left to stop.

    The interpreter's shutdown would give a caught signal its default again, and one that comes then would end a run
    that is done as if it had failed.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def stop_signals_caught() -> Iterator[None]:
    """Catch these signals inside; afterwards the caller's own handlers are back, and no stop is asked for."""
    global _stop_requested
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    catch_stop_signals()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _stop_requested = False


def stop_requested() -> bool:
    """Whether this process was asked to save and end."""
    return _stop_requested


@contextlib.contextmanager
def hold_stop_signals() -> Iterator[None]:
    """Hold these signals back from processes that are started inside, until they catch them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
