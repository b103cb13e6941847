"""Where this process stands among the others: started here, by torchrun, or by srun."""

import contextlib
import ctypes
import dataclasses
import ipaddress
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from data_prep.contract.command_line import USER_ERROR_EXIT_CODE, UserError
from pipeline.processes.signals import HANG_EXIT_CODE, REQUEUE_EXIT_CODE, catch_stop_signals, hold_stop_signals

# For malloc: keep freed activations instead of returning them to the kernel after every use. Their page faults cost
# about a tenth of a CPU step (benchmarks/cpu_choices.py).
KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(4 * 2**30), "MALLOC_TRIM_THRESHOLD_": str(8 * 2**30)}
_TERMINATION_GRACE_S = 2.0
_SECOND_FAILURE_S = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """The processes of a run and which one this is."""

    rank: int
    """Number of this process over all nodes."""
    local_rank: int
    """Number of this process on its node: the index of its GPU."""
    size: int
    """Processes over all nodes."""


SINGLE_PROCESS = World(rank=0, local_rank=0, size=1)


def world_from_environment() -> World | None:
    """The world that torchrun or srun describes, or None outside of both.

    Under srun, MASTER_ADDR and MASTER_PORT are filled in where they are missing.

    Raises:
        UserError: the variables are incomplete or contradict each other.
    """
    if "RANK" in os.environ or "WORLD_SIZE" in os.environ:
        world = _read_world("RANK", "LOCAL_RANK", "WORLD_SIZE", started_by="torchrun")
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            if world.size > 1 and name not in os.environ:
                raise UserError(f"RANK and WORLD_SIZE are set but {name} is not: start with torchrun, or unset them")
        return world
    # SLURM_STEP_ID is set by srun alone: in a batch script or an salloc shell nothing is to be joined.
    if "SLURM_STEP_ID" in os.environ and "SLURM_PROCID" in os.environ:
        world = _read_world("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", started_by="srun")
        _check_placement(world)
        if "MASTER_ADDR" not in os.environ:
            os.environ["MASTER_ADDR"] = _slurm_hosts()[0]
        # A port per job: two jobs on one node do not meet.
        os.environ.setdefault("MASTER_PORT", str(20_000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 20_000))
        if world.size > 1:
            _choose_interface(os.environ["MASTER_ADDR"])
        return world
    return None


def _check_placement(world: World) -> None:
    """Refuse an srun step whose ranks do not lie node by node, the same number on each.

    Ranks of a tensor-parallel group are neighbours, and a rank's number on its node is its GPU's.
    """
    if os.environ.get("SLURM_HET_SIZE", "1") not in ("", "1"):
        raise UserError(
            f"SLURM_HET_SIZE is {os.environ['SLURM_HET_SIZE']}: a run cannot span the parts of a heterogeneous job, "
            "ask for equal nodes"
        )
    on_nodes = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    if "," in on_nodes:  # 2(x3),1
        raise UserError(
            f"SLURM_STEP_TASKS_PER_NODE is {on_nodes}: start the same number of tasks on every node "
            "(srun --ntasks-per-node)"
        )
    number = re.match(r"\d+", on_nodes)
    node = os.environ.get("SLURM_NODEID", "")
    if number and node.isdigit() and world.rank != int(node) * int(number[0]) + world.local_rank:
        raise UserError(
            f"task {world.rank} is number {world.local_rank} on node {node} of {number[0]} tasks each: the tasks must "
            "be numbered node by node (srun --distribution=block)"
        )


def _choose_interface(master: str) -> None:
    """Name the network interface that reaches rank 0's machine, where nobody has: gloo may guess another.

    Raises:
        UserError: the machine's name does not resolve; joining would wait for half an hour without a word.
    """
    ours = _own_address_towards(master)
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    if ipaddress.ip_address(ours.split("%")[0]).is_loopback and _number_of_slurm_nodes() > 1:
        # Debian has a machine's own name mean 127.0.1.1 there: on rank 0's node the way to another node counts.
        ours = _own_address_towards(_slurm_hosts()[-1])
    for interface, addresses in psutil.net_if_addrs().items():
        if any(known.address.split("%")[0] == ours for known in addresses):
            os.environ["GLOO_SOCKET_IFNAME"] = interface
            return


def _own_address_towards(host: str) -> str:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    except OSError as error:
        raise UserError(
            f"MASTER_ADDR {host} is not known on {socket.gethostname()} ({error.strerror or error}): set MASTER_ADDR "
            "to a name or address of rank 0's machine that every node can reach"
        ) from error
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing, but has the kernel choose a route
            return probe.getsockname()[0]
    except OSError as error:
        raise UserError(f"{socket.gethostname()} has no route to MASTER_ADDR {host}: {error.strerror}") from error


def _number_of_slurm_nodes() -> int:
    text = os.environ.get("SLURM_STEP_NUM_NODES", "1")
    return int(text) if text.isdigit() else 1


def _read_world(rank: str, local_rank: str, size: str, *, started_by: str) -> World:
    values = {}
    for name in (rank, local_rank, size):
        text = os.environ.get(name, "")
        if not text.isdigit():
            raise UserError(f"environment variable {name} is '{text}', expected a number as {started_by} sets it")
        values[name] = int(text)
    if not values[rank] < values[size]:
        raise UserError(
            f"environment variable {rank} is {values[rank]}, expected a number below {size} ({values[size]})"
        )
    return World(rank=values[rank], local_rank=values[local_rank], size=values[size])


def _slurm_hosts() -> list[str]:
    """Hosts of the step, in order."""
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST", "")
    if re.fullmatch(r"[A-Za-z0-9_.-]+", nodes):  # a single node needs no expansion
        return [nodes]
    try:
        shown = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, timeout=30, check=True
        )
        hosts = shown.stdout.split()
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"cannot read the SLURM node list '{nodes}': set MASTER_ADDR and GLOO_SOCKET_IFNAME") from error
    if not hosts:
        raise UserError(f"the SLURM node list '{nodes}' names no host: set MASTER_ADDR and GLOO_SOCKET_IFNAME")
    return hosts


def start_local_processes(num_processes: int, argv: Sequence[str], log_dir: Path) -> int:
    """Run ``narrowbert <argv>`` as ``num_processes`` joined processes on this machine.

    Rank 0 has the terminal; the others write to ``log_dir/rank-N.log``. When one fails the rest
    are stopped. SIGTERM and SIGUSR1 go on to all of them. Returns the exit code of the first that failed,
    else ``REQUEUE_EXIT_CODE`` where they were asked to stop, else 0.
    """
    log_dir.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    children: list[subprocess.Popen[bytes]] = []
    try:
        with hold_stop_signals():
            for rank in range(num_processes):
                children.append(_start_rank(rank, num_processes, port, argv, log_dir))
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
        **KEEP_FREED_MEMORY,
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

    Without this a launcher killed by SIGKILL would leave ranks behind that go on training.
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
            # A rank that says what is wrong tells more than the ranks that it leaves behind.
            telling = (USER_ERROR_EXIT_CODE, HANG_EXIT_CODE)
            first = next((rank for rank in failed if codes[rank] in telling), failed[0])
            return _report_failure(first, codes[first] or 1, log_dir)
        if None not in codes:
            return REQUEUE_EXIT_CODE if REQUEUE_EXIT_CODE in codes else 0
        time.sleep(0.05)


def _report_failure(rank: int, code: int, log_dir: Path) -> int:
    log = log_dir / f"rank-{rank}.log"
    if code == USER_ERROR_EXIT_CODE:
        if rank != 0:  # rank 0 has printed its line on the terminal already
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            print([line for line in lines if line.startswith("narrowbert: error: ")][-1], file=sys.stderr)
        return USER_ERROR_EXIT_CODE
    where = "see above" if rank == 0 else f"its log is {log}"
    if code == HANG_EXIT_CODE:
        print(f"narrowbert: rank {rank} has ended a run that stood still ({where})", file=sys.stderr, flush=True)
        return HANG_EXIT_CODE
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    print(
        f"narrowbert: rank {rank} {how} ({where}); the other ranks are stopped. "
        "Run the same command again to go on from the last checkpoint.",
        file=sys.stderr,
        flush=True,
    )
    return 1


def _forward(number: int, children: list[subprocess.Popen[bytes]]) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)


def _end(children: list[subprocess.Popen[bytes]]) -> None:
    """End what still runs: without one of its ranks the run cannot go on, and what counts is on disk."""
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
