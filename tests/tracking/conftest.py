"""Servers and stores that several tests share: they take seconds to start."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tracking.servers import MlflowServer


@pytest.fixture(autouse=True)
def same_environment_afterwards() -> Iterator[None]:
    """Calls of MLflow in this process leave a store in the environment, which a later test would use."""
    before = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    yield
    for name in [name for name in os.environ if name.startswith("MLFLOW_") and name not in before]:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow sqlite file with its tables, to copy: making the tables takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    subprocess.run(
        [sys.executable, "-P", "-m", "mlflow", "db", "upgrade", "sqlite:///mlflow.db"],
        cwd=folder, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    return folder / "mlflow.db"


@pytest.fixture
def server(tmp_path: Path, empty_store: Path) -> Iterator[MlflowServer]:
    """A tracking server over HTTP with a sqlite store; not started yet."""
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(empty_store, folder)
    made = MlflowServer(folder, f"sqlite:///{folder / 'mlflow.db'}")
    try:
        yield made
    finally:
        made.stop()
