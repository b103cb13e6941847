"""One Slurm for all tests of this folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import slurm_cluster
from tests.cluster.slurm_cluster import SlurmCluster


@contextlib.contextmanager
def running_slurm(*, accounting: bool) -> Iterator[SlurmCluster]:
    """A cluster, started and taken down."""
    if why := slurm_cluster.missing(accounting=accounting):
        pytest.skip(f"no Slurm here: {why}")
    cluster = SlurmCluster(accounting=accounting)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def _slurm() -> Iterator[SlurmCluster]:
    with running_slurm(accounting=False) as cluster:
        yield cluster


@pytest.fixture
def slurm_with_accounts(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """A cluster that keeps accounts, its clients on the path."""
    with running_slurm(accounting=True) as cluster:
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)
        yield cluster


@pytest.fixture
def slurm(_slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """The cluster, its clients on the path, its nodes as they were, and no job left after the test."""
    for name, value in _slurm.environment.items():
        monkeypatch.setenv(name, value)
    yield _slurm
    left = _slurm.client("squeue", "--noheader", "--format=%A", check=False).split()
    if left:
        _slurm.client("scancel", "--signal=KILL", "--full", *left, check=False)
        _slurm.client("scancel", *left, check=False)
        with contextlib.suppress(AssertionError):
            _slurm.wait_for(lambda: not _slurm.client("squeue", "--noheader", "--format=%A"), "an empty queue", 30)


@pytest.fixture
def cluster_file(tmp_path: Path) -> Path:
    """A cluster preset for two nodes of two processes here."""
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "nodes: 2\nprocesses_per_node: 2\ntime_limit: '10'\nsignal_lead_seconds: 10\nshared_paths: [/]\n"
        "environment: [DS_ACCELERATOR=cpu, OMP_NUM_THREADS=1]\n"
    )
    return path
