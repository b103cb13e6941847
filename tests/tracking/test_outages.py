"""Every fault of a tracking server, with real servers and a real training: it never waits and never loses a point."""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.tracking.description import LAST_SHIPMENT_S
from tests.processes import TINY_RUN, kill_group, losses, run_command, start_command, user_error, wait_until
from tests.tracking.servers import MlflowServer, broken_server, spooled_points, stored_points

STEPS = 60
# The shipper's waits, shortened so that a test does not take a minute.
QUICK = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "2"}


class Training:
    """A training process with tracking on."""

    def __init__(self, folder: Path, shard_folder: Path, **environment: str) -> None:
        self.folder, self.run_dir = folder, folder / "run"
        self.argv = [
            "train", *TINY_RUN, "--tracking.enabled", "true", "--data.path", str(shard_folder), "--run_dir", "run",
            "--training.train_steps", str(STEPS), "--training.save_interval", "25",
            "--training.global_batch_size", "4", "--training.eval_rows", "8",
        ]  # fmt: skip
        self.process = start_command("pipeline", *self.argv, cwd=folder, **environment)

    def at_step(self, steps: int) -> "Training":
        """Wait for that many steps."""
        spool = self.run_dir / "metrics.jsonl"
        wait_until(
            lambda: spool.exists() and spool.read_text().count("train/step_seconds") >= steps,
            self.process,
            f"{steps} steps",
        )
        return self

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Hold the trainer alone, not its shipper: however fast the machine is, the run outlasts the fault."""
        self.process.send_signal(signal.SIGSTOP)
        yield
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)

    def shipper(self) -> psutil.Process | None:
        """The shipper, once it has made its first contact with a store or failed to."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "pipeline.tracking.shipping" in child.cmdline():
                    return child
        return None

    def end(self) -> str:
        """Wait for the end, which must be a good one with every step on disk; return what was printed."""
        out, err = self.process.communicate(timeout=180)
        assert self.process.returncode == 0, out + err
        assert "Traceback" not in out + err
        assert sorted(losses(self.run_dir)) == list(range(1, STEPS + 1))
        return out + err


@pytest.fixture
def train(tmp_path: Path, shard_folder: Path) -> Iterator[Callable[..., Training]]:
    """Starts a training; whatever is left of it is killed."""
    started: list[Training] = []

    def start(**environment: str) -> Training:
        started.append(Training(tmp_path, shard_folder, **QUICK, **environment))
        return started[-1]

    yield start
    for training in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(training.process.pid, signal.SIGKILL)


def wait_for_points(training: Training, store: str) -> None:
    """Until the store has some of the run's points."""
    path = store.removeprefix("sqlite:///")

    def arrived() -> bool:
        with contextlib.suppress(sqlite3.OperationalError), sqlite3.connect(path) as connection:
            return connection.execute("select count(*) from metrics").fetchone()[0] > 0
        return False

    wait_until(arrived, training.process, "the first points in MLflow")


@pytest.mark.slow
def test_server_down_before_the_start_and_answering_500_later(
    server: MlflowServer, train: Callable[..., Training], tmp_path: Path
) -> None:
    training = train(MLFLOW_TRACKING_URI=server.url)
    log = tmp_path / "run/logs/tracking.log"
    with training.at_step(5).paused():
        wait_until(lambda: log.exists() and "MLflow: " in log.read_text(), training.process, "a failed try")
    with broken_server(server.port) as broken:
        printed = training.end()
        assert broken.stdout is not None
        assert broken.stdout.readline() == "refused\n"  # the shipper has been there
    assert "narrowbert sync run" in printed
    refused = user_error("pipeline", "sync", "run", cwd=tmp_path, MLFLOW_TRACKING_URI=server.url, **QUICK)
    assert "nothing is lost" in refused
    server.start()
    run_command("pipeline", "sync", "run", cwd=tmp_path, MLFLOW_TRACKING_URI=server.url)
    assert stored_points(server.store, "run") == spooled_points(training.run_dir)


@pytest.mark.long
def test_server_frozen_then_killed_in_the_middle(
    server: MlflowServer, train: Callable[..., Training], tmp_path: Path
) -> None:
    server.start()
    training = train(MLFLOW_TRACKING_URI=server.url)
    with training.at_step(5).paused():
        wait_for_points(training, server.store)
        server.freeze()
    with training.at_step(20).paused():  # it went on
        server.stop()
    training.end()
    assert time.time() - (training.run_dir / "DONE").stat().st_mtime < LAST_SHIPMENT_S + 15
    server.start()
    run_command("pipeline", "sync", "run", cwd=tmp_path, MLFLOW_TRACKING_URI=server.url)
    assert stored_points(server.store, "run") == spooled_points(training.run_dir)


@pytest.mark.long
def test_frozen_server_that_thaws_needs_no_sync(server: MlflowServer, train: Callable[..., Training]) -> None:
    server.start()
    training = train(MLFLOW_TRACKING_URI=server.url)
    with training.at_step(5).paused():
        wait_for_points(training, server.store)
        server.freeze()
    with training.at_step(20).paused():
        server.thaw()
    assert "narrowbert sync" not in training.end()
    assert stored_points(server.store, "run") == spooled_points(training.run_dir)


@pytest.mark.long
def test_shipper_killed_comes_back_and_repeats_nothing(
    tmp_path: Path, empty_store: Path, train: Callable[..., Training]
) -> None:
    shutil.copy(empty_store, tmp_path)
    training = train()
    with training.at_step(5).paused():
        wait_for_points(training, f"sqlite:///{tmp_path / 'mlflow.db'}")
        shipper = training.shipper()
        assert shipper is not None
        shipper.kill()
        # As if it had been killed between a batch and its record; it may have been.
        (tmp_path / "run/tracking.offset").unlink(missing_ok=True)
    assert "narrowbert sync" not in training.end()
    assert stored_points(f"sqlite:///{tmp_path / 'mlflow.db'}", "run") == spooled_points(training.run_dir)


@pytest.mark.long
def test_sqlite_locked_by_another_process(tmp_path: Path, empty_store: Path, train: Callable[..., Training]) -> None:
    shutil.copy(empty_store, tmp_path)
    lock = (
        "import sqlite3, time; c = sqlite3.connect('mlflow.db'); c.execute('begin exclusive'); print(flush=True); "
        "time.sleep(600)"
    )
    holder = subprocess.Popen(["python3", "-c", lock], cwd=tmp_path, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        training = train()
        assert "narrowbert sync run" in training.end()
    finally:
        holder.kill()
        holder.wait()
    run_command("pipeline", "sync", "run", cwd=tmp_path)
    assert stored_points(f"sqlite:///{tmp_path / 'mlflow.db'}", "run") == spooled_points(training.run_dir)


@pytest.mark.long
def test_killed_and_resumed_is_one_run_with_unbroken_curves(
    tmp_path: Path, empty_store: Path, train: Callable[..., Training]
) -> None:
    shutil.copy(empty_store, tmp_path)
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    training = train(SLURM_JOB_ID="4711")
    with training.at_step(30).paused():
        wait_for_points(training, store)
        kill_group(training.process)
    again = train(SLURM_JOB_ID="4712")
    again.end()
    points = stored_points(store, "run")  # asserts that there is one run
    assert points == spooled_points(training.run_dir)
    assert [step for key, step, *_ in points if key == "train/loss"] == list(range(1, STEPS + 1))
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        tags = dict(connection.execute("select key, value from tags").fetchall())
        (status,) = connection.execute("select status from runs").fetchone()
    assert (tags["narrowbert.attempt"], tags["narrowbert.job_ids"], status) == ("2", "4711, 4712", "FINISHED")
