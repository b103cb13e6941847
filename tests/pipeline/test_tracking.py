"""The spool, and a real MLflow store behind the shipper."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.command_line import UserError
from pipeline.tracking import Spool, describe_run, read_metrics, sync


def test_a_point_is_written_once_and_keeps_its_time(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.write(1, {"train/loss": 2.5, "train/learning_rate": 0.1})
    spool.close()
    before = (tmp_path / "metrics.jsonl").read_text()
    again = Spool(tmp_path)
    again.write(1, {"train/loss": 2.5, "train/learning_rate": 0.1})
    assert again.changed == []
    again.write(1, {"train/loss": 2.25})
    assert again.changed == ["train/loss of step 1 is 2.25, was 2.5 before the resume"]
    again.close()
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_other_arithmetic_or_nan_is_no_fault(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.write(1, {"train/loss": float("nan")})
    spool.write(2, {"train/loss": 2.0})
    spool.close()
    again, moved = Spool(tmp_path), Spool(tmp_path, compare=False)
    again.write(1, {"train/loss": float("nan")})
    moved.write(2, {"train/loss": 2.0000001})
    assert again.changed == moved.changed == []


def test_a_torn_last_line_is_dropped_and_written_anew(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for step in (1, 2):
        spool.write(step, {"train/loss": float(step)})
    spool.close()
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    torn = path.read_bytes()
    assert read_metrics(tmp_path) == {"train/loss": [(1, 1.0)]}
    assert path.read_bytes() == torn  # a reader must not touch the file: its writer may be alive
    resumed = Spool(tmp_path)
    resumed.write(2, {"train/loss": 2.0})
    resumed.close()
    assert read_metrics(tmp_path) == {"train/loss": [(1, 1.0), (2, 2.0)]}


@pytest.mark.slow
def test_shipper_sends_every_point_once_and_resumes_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_dir = tmp_path / "run"
    (run_dir / "logs").mkdir(parents=True)
    (run_dir / "config.yaml").write_text("run_dir: run\n")
    description = {
        "experiment_name": "test",
        "run_name": "run",
        "params": {"model.layout": "2sf:10sf"},
        "tags": {"narrowbert.lineage": "abc", "narrowbert.attempt": 1},
    }
    describe_run(run_dir, description)
    spool = Spool(run_dir)
    for step in range(1, 701):  # more than one batch
        spool.write(step, {"train/loss": 1.0 / step, "train/tokens_per_second": 100.0 + step})
    # As the trainer starts it: ends when its standard input does.
    shipper = [sys.executable, "-P", "-m", "pipeline.tracking", str(run_dir)]
    subprocess.run(shipper, stdin=subprocess.DEVNULL, check=True, timeout=120)
    spool.write(701, {"train/loss": 0.5})
    spool.close()
    describe_run(run_dir, description | {"tags": {"narrowbert.lineage": "abc", "narrowbert.attempt": 2}})
    (run_dir / "DONE").write_text("")
    sync(run_dir)
    sync(run_dir)  # nothing left: harmless

    # Another experiment is another MLflow run: it gets every point, not those since the last shipment.
    describe_run(run_dir, description | {"experiment_name": "moved"})
    sync(run_dir)
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        moved = store.execute(
            "select count(*) from metrics join runs using (run_uuid) join experiments using (experiment_id) "
            "where experiments.name = 'moved' and key = 'train/loss'"
        ).fetchone()
        assert moved == (701,)
        store.execute("delete from metrics where run_uuid in (select run_uuid from runs where experiment_id = 2)")
        store.execute("delete from params where run_uuid in (select run_uuid from runs where experiment_id = 2)")
        store.execute("delete from tags where run_uuid in (select run_uuid from runs where experiment_id = 2)")
        store.execute("delete from runs where experiment_id = 2")

    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        runs = store.execute("select name, status from runs").fetchall()
        points = store.execute("select step, value from metrics where key = 'train/loss' order by step").fetchall()
        rates = store.execute("select count(*) from metrics where key = 'train/tokens_per_second'").fetchone()
        params = dict(store.execute("select key, value from params").fetchall())
        tags = dict(store.execute("select key, value from tags").fetchall())
    assert runs == [("run", "FINISHED")]
    assert points == [(step, 1.0 / step) for step in range(1, 701)] + [(701, 0.5)]
    assert rates == (700,)
    assert params == {"model.layout": "2sf:10sf"}
    assert tags["narrowbert.attempt"] == "2"


def test_sync_without_a_server_is_one_line_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # the discard port: nobody listens
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "config.yaml").write_text("")
    describe_run(tmp_path, {"experiment_name": "x", "run_name": "x", "params": {}, "tags": {"narrowbert.lineage": "a"}})
    spool = Spool(tmp_path)
    spool.write(1, {"train/loss": 1.0})
    spool.close()
    with pytest.raises(UserError, match="nothing is lost"):
        sync(tmp_path)
    assert read_metrics(tmp_path) == {"train/loss": [(1, 1.0)]}
    with pytest.raises(UserError, match="no run directory"):
        sync(tmp_path / "elsewhere")
    assert os.environ["MLFLOW_TRACKING_URI"] not in json.dumps((tmp_path / "tracking.json").read_text())
