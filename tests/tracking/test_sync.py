"""``narrowbert sync`` on the default store: everything once, one run a lineage, refusals in one line."""

import fcntl
import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from data_prep.contract.command_line import UserError
from pipeline.runs.records import Spool, read_metrics
from pipeline.tracking.shipping import sync
from tests.tracking.servers import spooled_points, spooled_run, stored_points


@pytest.mark.slow
def test_everything_arrives_once_however_often_it_is_sent(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(empty_store, tmp_path)
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.chdir(tmp_path)
    run_dir = spooled_run(tmp_path, **{"validation/loss": float("nan")})
    monkeypatch.chdir("/")  # the default store is found from any folder
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 701, "timestamp_ms": 5, "metr')  # still being written
    sync(run_dir)
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('ics": {"train/loss": 0.25}}\n')
    sync(run_dir)  # the rest of the line
    (run_dir / "tracking.offset").unlink()
    sync(run_dir)  # all of it again
    points = stored_points(store, "run")  # asserts that there is one run
    assert points == spooled_points(run_dir)
    assert len(points) == 700 * 3 + 1
    # The same lineage elsewhere is another MLflow run: it gets every point, not those since the last shipment.
    description = json.loads((run_dir / "tracking.json").read_text())
    (run_dir / "tracking.json").write_text(json.dumps(description | {"experiment_name": "moved", "run_name": "moved"}))
    sync(run_dir)
    assert stored_points(store, "moved") == points
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        params = connection.execute("select count(*) from params group by run_uuid").fetchall()
        artifacts = connection.execute("select artifact_location from experiments where name = 'moved'").fetchone()[0]
    assert params == [(120,), (120,)]
    assert artifacts == (tmp_path / "mlruns").as_uri()


def test_what_sync_refuses_is_one_line_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://bob:planted-password@127.0.0.1:9")  # nobody listens there
    run_dir = spooled_run(tmp_path, steps=1)
    before = read_metrics(run_dir)
    with pytest.raises(UserError, match="nothing is lost"):
        sync(run_dir)
    assert read_metrics(run_dir) == before
    assert "planted-password" not in (run_dir / "tracking.json").read_text()
    with pytest.raises(UserError, match="no run directory"):
        sync(tmp_path / "elsewhere")
    with (run_dir / "tracking.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process: it is training"):
            sync(run_dir)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(UserError, match="set MLFLOW_TRACKING_URI as it was"):
        sync(run_dir)
    (run_dir / "tracking.json").unlink()
    with pytest.raises(UserError, match=r"tracking\.enabled false"):
        sync(run_dir)


@pytest.mark.slow
def test_lines_that_were_lost_after_they_were_sent_stop_nothing(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(empty_store, tmp_path)
    monkeypatch.chdir(tmp_path)
    run_dir = spooled_run(tmp_path, steps=20)
    sync(run_dir)
    path = run_dir / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:10]))  # a node without power takes what its cache held with it
    resumed = Spool(run_dir)
    for step in range(11, 31):
        resumed.write(step, {"train/loss": 1.0 / step, "train/masked_accuracy": 0.5})
    resumed.close()
    sync(run_dir)
    stored = stored_points(f"sqlite:///{tmp_path / 'mlflow.db'}", "run")
    assert set(spooled_points(run_dir)) <= set(stored)


@pytest.mark.slow
def test_a_damaged_line_is_named(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(empty_store, tmp_path)
    monkeypatch.chdir(tmp_path)
    run_dir = spooled_run(tmp_path, steps=2)
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write("damaged\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 3 is damaged"):
        sync(run_dir)
