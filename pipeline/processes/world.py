"""Where this process stands among the others: started alone, by torchrun, mpirun or srun."""

import contextlib
import dataclasses
import ipaddress
import os
import re
import socket
import subprocess

import psutil

from data_prep.contract.command_line import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """The processes of a run and which one this is."""

    rank: int
    """Number of this process over all nodes."""
    local_rank: int
    """Number of this process on its node: the index of its GPU."""
    size: int
    """Processes over all nodes."""


_FAR_AWAY = "192.0.2.1"
"""An address of no machine (RFC 5737): the way to it is the node's way to others. Nothing is sent there."""

_OF_MPIRUN = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "mpirun")

_LOCAL_RANKS = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")
"""Kubeflow's PyTorchJob sets none of them: each of its pods has one process."""

SINGLE_PROCESS = World(rank=0, local_rank=0, size=1)


def choose_world(processes: int | None) -> tuple[World | None, int]:
    """Which processes a run has: those that a launcher has started, or those to start here.

    Args:
        processes: how many are asked for; None where nothing is.

    Returns:
        This process among those of a launcher, or None where none are to be joined; and how many processes the run has.

    Raises:
        UserError: another number is asked for than a launcher has started, or its variables contradict each other.
    """
    joined = world_from_environment()
    if joined is None:
        return None, 1 if processes is None else processes
    if processes is None or processes == joined.size:
        return joined, joined.size
    if joined.size == 1:  # a shell inside of `srun --pty`, or variables that a launcher has left: nobody else is there
        return None, processes
    variables = ("WORLD_SIZE", "RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "SLURM_STEP_ID")
    found = [name for name in variables if name in os.environ]
    raise UserError(
        f"--processes is {processes}, but this process is one of {joined.size} that a launcher has started "
        f"(environment variable {found[0]}): leave --processes out to join them, or unset {', '.join(found)} to start "
        "processes here"
    )


def world_from_environment() -> World | None:
    """The world that torchrun, mpirun or srun describes, or None outside of them.

    Under srun, MASTER_ADDR and MASTER_PORT are filled in where they are missing.

    Raises:
        UserError: the variables are incomplete or contradict each other.
    """
    for rank, size, started_by in (("RANK", "WORLD_SIZE", "torchrun"), _OF_MPIRUN):
        if rank not in os.environ and size not in os.environ:
            continue
        world = _read_world(rank, _local_rank_variable(), size, started_by=started_by)
        _prepare_meeting(world, rank, size)
        return world
    # SLURM_STEP_ID is set by srun alone: in a batch script or an salloc shell nothing is to be joined.
    if "SLURM_STEP_ID" in os.environ and "SLURM_PROCID" in os.environ:
        world = _read_world("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", started_by="srun")
        _check_placement(world)
        if "MASTER_ADDR" not in os.environ:
            os.environ["MASTER_ADDR"] = _slurm_hosts()[0]
        # A port per job: two jobs on one node do not meet.
        os.environ.setdefault("MASTER_PORT", str(20_000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 20_000))
        _prepare_meeting(world, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
        return world
    return None


def _local_rank_variable() -> str:
    """Where the launcher says which of the node's processes this is; empty where it starts one on each node."""
    return next((name for name in _LOCAL_RANKS if name in os.environ), "")


def _prepare_meeting(world: World, rank: str, size: str) -> None:
    if world.size == 1:
        return
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise UserError(
                f"{rank} and {size} are set but {name} is not: set MASTER_ADDR and MASTER_PORT to where the ranks "
                "meet, start with torchrun, or unset them"
            )
    port = os.environ["MASTER_PORT"]
    if not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"environment variable MASTER_PORT is '{port}', expected a port, 1 to 65535")
    _choose_interface(os.environ["MASTER_ADDR"])


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
        # On Debian a host's own name resolves to 127.0.1.1, so rank 0's node looks up the route to another node.
        ours = _own_address_towards(_slurm_hosts()[-1])
    elif ipaddress.ip_address(ours.split("%")[0]).is_loopback and _spans_nodes_of_torchrun():
        with contextlib.suppress(UserError):  # no network but loopback
            ours = _own_address_towards(_FAR_AWAY)
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


def _spans_nodes_of_torchrun() -> bool:
    here, all_of_them = os.environ.get("LOCAL_WORLD_SIZE", ""), os.environ.get("WORLD_SIZE", "")
    return here.isdigit() and all_of_them.isdigit() and int(here) < int(all_of_them)


def _number_of_slurm_nodes() -> int:
    text = os.environ.get("SLURM_STEP_NUM_NODES", "1")
    return int(text) if text.isdigit() else 1


def _read_world(rank: str, local_rank: str, size: str, *, started_by: str) -> World:
    values = {}
    for name in (rank, local_rank, size):
        text = os.environ.get(name, "") if name else "0"
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
