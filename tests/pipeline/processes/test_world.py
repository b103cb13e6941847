import os
import re
import socket

import psutil
import pytest

from data_prep.contract.command_line import UserError
from pipeline.processes.world import World, choose_world, world_from_environment

LAUNCH_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME")


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name in LAUNCH_VARIABLES or name.startswith(("SLURM_", "OMPI_")):
            monkeypatch.delenv(name)


def set_all(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_outside_of_launchers_there_is_no_world(monkeypatch: pytest.MonkeyPatch) -> None:
    assert world_from_environment() is None
    # A batch script or an salloc shell: SLURM, but no srun step to join.
    set_all(monkeypatch, SLURM_JOB_ID="7", SLURM_PROCID="0", SLURM_NTASKS="4")
    assert world_from_environment() is None


SRUN_SHELL = {
    "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_STEP_NODELIST": "localhost",
}  # fmt: skip
LEFT_BEHIND = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
OF_TORCHRUN = {
    "GLOO_SOCKET_IFNAME": "lo",
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "1",
}


@pytest.mark.parametrize("variables", [{}, SRUN_SHELL, LEFT_BEHIND])
def test_processes_that_are_asked_for_are_started_wherever_nobody_waits(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    set_all(monkeypatch, **variables)
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    assert choose_world(8) == (None, 8)
    joined = World(rank=0, local_rank=0, size=1) if variables else None
    assert choose_world(None) == (joined, 1)
    assert choose_world(1) == (joined, 1)


def test_another_number_than_a_launcher_has_started_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, **OF_TORCHRUN)
    world = World(rank=1, local_rank=1, size=4)
    assert choose_world(None) == choose_world(4) == (world, 4)
    for processes in (1, 8):
        with pytest.raises(UserError, match=rf"--processes is {processes}, .* one of 4 .* variable WORLD_SIZE\)"):
            choose_world(processes)


OF_MPIRUN = {f"OMPI_COMM_WORLD_{name}": "1" for name in ("RANK", "LOCAL_RANK")} | {"OMPI_COMM_WORLD_SIZE": "2"}


@pytest.mark.parametrize("variables", [OF_TORCHRUN, OF_MPIRUN, OF_TORCHRUN | OF_MPIRUN, OF_TORCHRUN | SRUN_SHELL])
def test_processes_are_started_once_what_the_line_names_is_unset(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    set_all(monkeypatch, MASTER_ADDR="127.0.0.1", MASTER_PORT="1", GLOO_SOCKET_IFNAME="lo")
    set_all(monkeypatch, **variables)
    with pytest.raises(UserError) as caught:
        choose_world(8)
    named = re.search(r"or unset (.+) to start processes here", str(caught.value))
    assert named is not None
    for name in named[1].split(", "):
        monkeypatch.delenv(name)
    assert choose_world(8) == (None, 8)


def test_torchrun_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(
        monkeypatch,
        RANK="5",
        LOCAL_RANK="1",
        WORLD_SIZE="8",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="1",
        GLOO_SOCKET_IFNAME="lo",
    )
    assert world_from_environment() == World(rank=5, local_rank=1, size=8)


@pytest.mark.parametrize(
    ("variables", "local_rank"),
    [
        ({"RANK": "1", "WORLD_SIZE": "2"}, 0),  # Kubeflow: a pod has one process
        ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_LOCALID": "1"}, 1),
        (OF_MPIRUN, 1),
    ],
)
def test_launchers_with_other_variables(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], local_rank: int
) -> None:
    set_all(monkeypatch, MASTER_ADDR="127.0.0.1", MASTER_PORT="1", GLOO_SOCKET_IFNAME="lo", **variables)
    assert world_from_environment() == World(rank=1, local_rank=local_rank, size=2)


def test_srun_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(
        monkeypatch, SLURM_STEP_ID="0", SLURM_PROCID="3", SLURM_LOCALID="1", SLURM_STEP_NUM_TASKS="4",
        SLURM_STEP_NODELIST="localhost", SLURM_JOB_ID="41",
    )  # fmt: skip
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert world_from_environment() == World(rank=3, local_rank=1, size=4)
    assert os.environ.pop("MASTER_ADDR") == "localhost"
    assert os.environ.pop("MASTER_PORT") == "20041"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"RANK": "0"}, "WORLD_SIZE is ''"),
        ({"RANK": "0", "LOCAL_RANK": "x", "WORLD_SIZE": "2"}, "LOCAL_RANK is 'x'"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, "MASTER_ADDR is not"),
        ({"RANK": "4", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}, "expected a number below"),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is not"),
        ({"RANK": "x", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "RANK is 'x'"),
    ],
)
def test_wrong_variables_are_named(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str) -> None:
    set_all(monkeypatch, **variables)
    with pytest.raises(UserError, match=expected):
        world_from_environment()


STEP = {
    "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_JOB_ID": "41", "MASTER_ADDR": "127.0.0.1",
}  # fmt: skip


def test_interface_is_the_one_that_leads_to_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, **STEP)
    assert world_from_environment() == World(rank=3, local_rank=1, size=4)
    assert os.environ.pop("GLOO_SOCKET_IFNAME") == "lo"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    world_from_environment()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0", "a choice of the user's stays"


def test_interface_on_a_node_that_knows_itself_by_a_loopback_address(monkeypatch: pytest.MonkeyPatch) -> None:
    real = [
        (name, known.address)
        for name, addresses in psutil.net_if_addrs().items()
        for known in addresses
        if known.family == socket.AF_INET and not known.address.startswith("127.")
    ]
    if not real:
        pytest.skip("no network interface here but loopback")
    interface, address = real[0]
    set_all(monkeypatch, **STEP, SLURM_STEP_NUM_NODES="2")
    monkeypatch.setattr("pipeline.processes.world._slurm_hosts", lambda: ["127.0.0.1", address])
    world_from_environment()
    assert os.environ.pop("GLOO_SOCKET_IFNAME") == interface


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"SLURM_PROCID": "x"}, "SLURM_PROCID is 'x'"),
        ({"SLURM_PROCID": "4"}, "expected a number below SLURM_STEP_NUM_TASKS"),
        ({"SLURM_STEP_NUM_TASKS": ""}, "SLURM_STEP_NUM_TASKS is ''"),
        ({"SLURM_STEP_TASKS_PER_NODE": "2,1"}, "same number of tasks on every node"),
        ({"SLURM_LOCALID": "0", "SLURM_PROCID": "1"}, "--distribution=block"),
        ({"SLURM_HET_SIZE": "2"}, "heterogeneous"),
        ({"MASTER_ADDR": "no-such-host.invalid"}, "MASTER_ADDR no-such-host.invalid is not known"),
    ],
)
def test_wrong_steps_are_one_line(monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], expected: str) -> None:
    set_all(monkeypatch, **STEP | changes)
    with pytest.raises(UserError) as caught:
        world_from_environment()
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_interface_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, RANK="1", LOCAL_RANK="1", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    assert world_from_environment() is not None
    assert os.environ.pop("GLOO_SOCKET_IFNAME") == "lo"
    # Two nodes, and this one knows rank 0, itself, by a loopback address: the others could not reach it there.
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("no network interface here but loopback")
    assert world_from_environment() is not None
    assert os.environ.pop("GLOO_SOCKET_IFNAME") != "lo"
