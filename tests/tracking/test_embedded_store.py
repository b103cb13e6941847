"""The store in a file: two that make it at once, a kill in between, and what is no store at all."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.contract.command_line import UserError
from pipeline.export.register import check_model_name
from pipeline.runs.records import append_event
from pipeline.tracking import embedded_store
from pipeline.tracking.description import named_store
from pipeline.tracking.embedded_store import make_store
from pipeline.tracking.shipping import sync
from tests.faults.runs import LONG
from tests.processes import start_command, user_error
from tests.tracking.servers import spooled_points, spooled_run, stored_points

DOUBLE_STARTS = 20 if LONG else 1


def address(path: Path) -> str:
    return f"sqlite:///{path}"


@pytest.mark.slow
@pytest.mark.parametrize("number", range(DOUBLE_STARTS))
def test_three_that_start_at_once_share_a_whole_store(number: int, tmp_path: Path) -> None:
    runs = []
    for name in "abc":
        run_dir = spooled_run(tmp_path / name, steps=20)
        text = (run_dir / "tracking.json").read_text()
        (run_dir / "tracking.json").write_text(text.replace('"abc"', f'"{name}"').replace('"run"', f'"run-{name}"'))
        runs.append(run_dir)
    store = address(tmp_path / "mlflow.db")
    started = [start_command("pipeline", "sync", str(run), cwd=tmp_path, MLFLOW_TRACKING_URI=store) for run in runs]
    assert [process.wait(300) for process in started] == [0, 0, 0], [process.communicate() for process in started]
    for run, name in zip(runs, "abc", strict=True):
        assert stored_points(store, f"run-{name}") == spooled_points(run)
    assert not list(tmp_path.glob(".mlflow.db*")), number


@pytest.mark.slow
def test_a_kill_while_the_store_is_made_leaves_none(tmp_path: Path) -> None:
    store = tmp_path / "mlflow.db"
    code = "import sys; from pipeline.tracking.embedded_store import make_store; make_store(sys.argv[1])"
    seen = 0
    for number in range(3):
        process = subprocess.Popen([sys.executable, "-c", code, address(store)], start_new_session=True)
        while not any(left.stat().st_size for left in tmp_path.glob(".mlflow.db.*.partial")) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(random.Random(number).uniform(0, 0.5))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        seen += not store.exists()
        if store.exists():
            break
    assert seen, "a kill came before the end"
    make_store(address(store))
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"], "what the kills left is gone"
    run_dir = spooled_run(tmp_path, steps=5)
    sync_into(run_dir, store)


def sync_into(run_dir: Path, store: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", address(store))
        sync(run_dir)


@pytest.mark.parametrize(
    "change",
    [
        "create table _alembic_tmp_latest_metrics (key text)",
        "update alembic_version set version_num = '451aebb31d03'",
        "drop table alembic_version",
    ],
)
def test_a_half_made_store_is_named_with_its_remedy(
    change: str, tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_store, "_PATIENCE_S", 0.0)
    store = tmp_path / "mlflow.db"
    shutil.copy(empty_store, store)
    with sqlite3.connect(store) as connection:
        if "update" not in change:
            connection.execute("insert into experiments (experiment_id, name) values (0, 'Default')")
        connection.execute(change)
    run_dir = spooled_run(tmp_path, steps=5)
    with pytest.raises(UserError, match=r"mlflow\.db is half-made: .* delete it, and narrowbert sync RUN_DIR"):
        sync_into(run_dir, store)


def test_a_store_without_any_experiment_is_whole(empty_store: Path) -> None:
    assert embedded_store._is_whole(empty_store), "mlflow db upgrade makes it so"


def test_what_is_no_database_is_said(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"text" * 100)
    with pytest.raises(UserError, match="is no database"):
        make_store(address(tmp_path / "mlflow.db"))


@pytest.mark.slow
def test_what_waiting_does_not_mend_is_no_outage(tmp_path: Path, empty_store: Path) -> None:
    from mlflow.tracking import MlflowClient

    store = tmp_path / "mlflow.db"
    make_store(address(store))
    run_dir = spooled_run(tmp_path, steps=5)
    sync_into(run_dir, store)
    client = MlflowClient(tracking_uri=address(store))
    experiment = client.get_experiment_by_name("shared")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    with pytest.raises(UserError, match=f"'shared' is deleted: .*--experiment-id {experiment.experiment_id}"):
        sync_into(run_dir, store)
    client.restore_experiment(experiment.experiment_id)
    sync_into(run_dir, store)
    old = tmp_path / "old.db"
    shutil.copy(store, old)
    with sqlite3.connect(old) as connection:
        connection.execute("update alembic_version set version_num = '451aebb31d03'")  # of MLflow 1.0
    with pytest.raises(UserError, match=r"refuses it, nothing is lost: .*mlflow db upgrade"):
        sync_into(run_dir, old)


@pytest.mark.parametrize("bad", ["localhost:5000", "http:/host", "sqlite:mlflow.db", "./mlruns", "banana://x"])
def test_an_address_that_is_none_is_said(bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", bad)
    with pytest.raises(UserError, match=r"MLFLOW_TRACKING_URI begins with .*sqlite:///FILE"):
        named_store()


@pytest.mark.parametrize("good", ["http://h:5000", "sqlite:///a.db", "postgresql+psycopg2://h/db", "databricks"])
def test_an_address_of_a_store_is_taken(good: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", good)
    assert named_store() == good
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert named_store() is None, "empty is unset"


@pytest.mark.parametrize("name", ["", " ", "a/b", "a:b", ".."])
def test_names_that_the_registry_refuses(name: str) -> None:
    with pytest.raises(UserError, match="is no name of a model"):
        check_model_name(name)
    check_model_name("my model.v2")


def test_the_registry_name_is_looked_at_before_the_export_is_written(tmp_path: Path) -> None:
    run_dir = spooled_run(tmp_path, steps=1)
    append_event(run_dir, "end", 1, "end")
    line = user_error("pipeline", "export", str(run_dir), "--output", str(tmp_path / "model"), "--register", "a/b")
    assert "is no name of a model" in line
    assert not (tmp_path / "model").exists()
