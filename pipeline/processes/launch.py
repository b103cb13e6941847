"""Starts the processes of a run on this machine, and ends them together."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from data_prep.contract.command_line import USER_ERROR_EXIT_CODE
from pipeline.processes.signals import HANG_EXIT_CODE, REQUEUE_EXIT_CODE, catch_stop_signals, hold_stop_signals

_TERMINATION_GRACE_S = 2.0
_SECOND_FAILURE_S = 0.5


def start_local_processes(num_processes: int, argv: Sequence[str], log_dir: Path) -> int:
    """Run ``narrowbert <argv>`` as ``num_processes`` joined processes on this machine.

    Rank 0 has the terminal; the others write to ``log_dir/rank-N.log``. When one fails the rest
    are stopped. SIGTERM and SIGUSR1 are forwarded to all of them. Returns the exit code of the first that failed,
    else ``REQUEUE_EXIT_CODE`` where they were asked to stop, else 0.
    """
    log_dir.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    children: list[subprocess.Popen[bytes]] = []
    try:
        with hold_stop_signals():
            for rank in range(num_processes):  # one at a time: those that started are ended where a later one fails
                children.append(_start_rank(rank, num_processes, port, argv, log_dir))  # noqa: PERF401
            catch_stop_signals(forward=lambda number: _forward(number, children))
        return _wait_for_all(children, log_dir)
    finally:
        _end(children)


def _start_rank(
    rank: int, num_processes: int, port: int, argv: Sequence[str], log_dir: Path
) -> subprocess.Popen[bytes]:
    with contextlib.ExitStack() as stack:
        output = None if rank == 0 else stack.enter_context((log_dir / f"rank-{rank}.log").open("ab"))
        return subprocess.Popen(
            # -P: a folder called "pipeline" where the user works must not shadow this package.
            [sys.executable, "-P", "-m", "pipeline", *argv],
            env=_child_environment(rank, num_processes, port),
            stdout=output,
            stderr=output,
        )


def _child_environment(rank: int, num_processes: int, port: int) -> dict[str, str]:
    threads = max(1, len(os.sched_getaffinity(0)) // num_processes)
    return {
        "OMP_NUM_THREADS": str(threads),
        "GLOO_SOCKET_IFNAME": "lo",
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "NARROWBERT_LAUNCHER_PID": str(os.getpid()),
    }


def die_with_launcher() -> None:
    """In a process started by ``start_local_processes``: be killed when the launcher is.

    Without this a launcher killed by SIGKILL would leave ranks behind that keep training.
    """
    launcher = os.environ.get("NARROWBERT_LAUNCHER_PID")
    if launcher is None or not sys.platform.startswith("linux"):
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != int(launcher):  # it died before the call above
        os.kill(os.getpid(), signal.SIGKILL)


def _wait_for_all(children: list[subprocess.Popen[bytes]], log_dir: Path) -> int:
    while True:
        codes = [child.poll() for child in children]
        if any(code not in (None, 0, REQUEUE_EXIT_CODE) for code in codes):
            time.sleep(_SECOND_FAILURE_S)
            codes = [child.poll() for child in children]
            failed = [rank for rank, code in enumerate(codes) if code not in (None, 0, REQUEUE_EXIT_CODE)]
            # A rank that says what is wrong, or was killed, tells more than the ranks that it leaves behind.
            telling = (USER_ERROR_EXIT_CODE, HANG_EXIT_CODE)
            first = min(failed, key=lambda rank: (codes[rank] not in telling, (codes[rank] or 0) > 0))
            return report_failure(first, codes[first] or 1, log_dir)
        if None not in codes:
            return REQUEUE_EXIT_CODE if REQUEUE_EXIT_CODE in codes else 0
        time.sleep(0.05)


def report_failure(rank: int, code: int, log_dir: Path) -> int:
    """Say which rank has ended a run with which code, and why. Returns the exit code of the run."""
    log = log_dir / f"rank-{rank}.log"
    if code == USER_ERROR_EXIT_CODE:
        if rank != 0:  # rank 0 has printed its line on the terminal already
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
            ours = [line for line in lines if line.startswith("narrowbert: error: ")]
            _tell(ours[-1] if ours else f"narrowbert: error: rank {rank} does not say why it ended; its log is {log}")
        return USER_ERROR_EXIT_CODE
    where = "see above" if rank == 0 else f"its log is {log}"
    if code == HANG_EXIT_CODE:
        _tell(f"narrowbert: rank {rank} has ended a run that stood still ({where})")
        return HANG_EXIT_CODE
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    _tell(
        f"narrowbert: rank {rank} {how} ({where}); the other ranks are stopped. "
        "Run the same command again to resume from the last checkpoint."
    )
    return 1


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _forward(number: int, children: list[subprocess.Popen[bytes]]) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)


def _end(children: list[subprocess.Popen[bytes]]) -> None:
    """End what still runs: without one of its ranks the run cannot continue, and what counts is on disk."""
    _forward(signal.SIGINT, children)
    deadline = time.monotonic() + _TERMINATION_GRACE_S
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
