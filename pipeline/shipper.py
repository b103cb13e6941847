"""The shipper: a process that carries a run's spool, description and artifacts to MLflow.

Sending a point twice is harmless: MLflow drops exact duplicates of (key, value, step, time), and
times are fixed when written. So the position in the spool is stored after a batch has arrived, and
whatever kills the shipper in between costs a repetition, never a point and never a second one.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_prep.command_line import UserError, one_line
from pipeline.mixture import paths_of
from pipeline.redaction import RedactingStream, redact_text
from pipeline.report import write_report
from pipeline.run_directory import write_atomically
from pipeline.spool import EVENTS, SPOOL, parse_point, read_events
from pipeline.tracking import DESCRIPTION, LAST_SHIPMENT_S

_PROGRESS = "tracking.offset"
_LOCK = "tracking.lock"
_MAX_METRICS_A_BATCH = 1000  # MLflow's own limit
_MAX_PARAMS_A_BATCH = 100
_MAX_DIGEST = 36  # of an MLflow dataset
_POLL_S = 2.0
_ARTIFACTS_EVERY_S = 30.0
_LONGEST_BACKOFF_S = 30.0


def ship(run_dir: Path, *, finished: Callable[[float], bool]) -> None:
    """Send everything of a run to MLflow until ``finished(seconds to wait)`` is true and nothing is left.

    The caller holds the run's lock.

    Raises:
        UserError: a file of the run is damaged, or no server is known.
        Exception: whatever MLflow's client raises; what is stored on disk stays at what has arrived.
    """
    description = json.loads((run_dir / DESCRIPTION).read_text(encoding="utf-8"))
    client = _connect(description)
    run_id = _find_or_create_run(client, run_dir, description)
    progress = _Progress.read(run_dir, run_id)
    artifacts_due = 0.0
    sent = True
    while True:
        last = finished(0 if sent else _POLL_S)  # no pause while catching up
        sent = _send_new_points(client, run_dir, progress)
        if time.monotonic() >= artifacts_due or (last and not sent):
            # After the points: a broken artifact store keeps no figure back.
            _send_artifacts(client, run_dir, description, progress, last=last)
            artifacts_due = time.monotonic() + _ARTIFACTS_EVERY_S
        if last and not sent:
            break
    done = (run_dir / "DONE").exists()
    ended = run_dir / ("DONE" if done else SPOOL)
    end_time = int(ended.stat().st_mtime * 1000) if ended.exists() else None
    client.set_terminated(run_id, status="FINISHED" if done else "KILLED", end_time=end_time)


def connect_to_run(run_dir: Path) -> tuple[str, str]:
    """The tracking store of a run that was trained, and the id of its run there.

    Raises:
        UserError: not a run directory with tracking, MLflow cannot be reached or does not have the run.
    """
    description = _read_description(run_dir)
    with mlflow_for_users():
        client = _connect(description)
        experiment = client.get_experiment_by_name(description["experiment_name"])
        run = experiment and _find_run(client, experiment.experiment_id, description)
        if not run:
            raise UserError(f"MLflow does not have the run {run_dir}: send it first with narrowbert sync {run_dir}")
        return tracking_store(description), run.info.run_id


def log_file(run_dir: Path, path: Path, folder: str) -> None:
    """Add a file to the artifacts of a run that MLflow has.

    Raises:
        UserError: as ``connect_to_run``.
    """
    store, run_id = connect_to_run(run_dir)
    from mlflow.tracking import MlflowClient

    with mlflow_for_users():
        MlflowClient(tracking_uri=store).log_artifact(run_id, str(path), folder)


def sync(run_dir: Path) -> None:
    """Send whatever of a run has not reached MLflow (``narrowbert sync RUN_DIR``).

    Raises:
        UserError: not a run directory, MLflow cannot be reached, or the run's own shipper is at work.
    """
    _read_description(run_dir)
    with (run_dir / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{run_dir} is being sent by another process: it is training, or has just ended; try again later"
            ) from error
        with mlflow_for_users():
            ship(run_dir, finished=lambda _: True)


def _read_description(run_dir: Path) -> dict[str, Any]:
    path = run_dir / DESCRIPTION
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if not (run_dir / "config.yaml").exists():
            raise UserError(f"{run_dir} is no run directory: it has no config.yaml") from error
        raise UserError(f"{run_dir} was trained with tracking.enabled false: it has no {DESCRIPTION}") from error
    except (OSError, ValueError) as error:
        raise UserError(one_line(f"{path} cannot be read: {error}")) from error


@contextlib.contextmanager
def mlflow_for_users() -> Iterator[None]:
    """Whatever MLflow raises as the user's one line, whatever it prints without secrets."""
    out, err = RedactingStream(sys.stdout), RedactingStream(sys.stderr)
    try:
        # It prints the server's address, with the password that may be in it.
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield
    except UserError:
        raise
    except Exception as error:  # MLflow, SQLAlchemy and requests each have their own
        message = redact_text(one_line(str(error)))
        raise UserError(f"MLflow cannot be reached, nothing is lost, try again later: {message}") from error


# ---------------------------------------------------------------------------------------- MLflow


def _set_up_client() -> None:
    """MLflow's settings, before it is imported; the user's own come first."""
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # Its defaults block for minutes on a server that is down. The pauses between tries are ours.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


def tracking_store(description: dict[str, Any]) -> str:
    """Where the run is tracked: the environment's server, or else the file that training used.

    Raises:
        UserError: training had a server that this process does not know.
    """
    store = os.environ.get("MLFLOW_TRACKING_URI") or description.get("default_store")
    if store is None:
        raise UserError("set MLFLOW_TRACKING_URI as it was for the training")
    return store


def _connect(description: dict[str, Any]) -> Any:
    _set_up_client()
    store = tracking_store(description)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=store)


def _find_run(client: Any, experiment_id: str, description: dict[str, Any]) -> Any:
    lineage = description["tags"]["narrowbert.lineage"]
    found = client.search_runs([experiment_id], filter_string=f"tags.`narrowbert.lineage` = '{lineage}'")
    return found[0] if found else None


def _find_or_create_run(client: Any, run_dir: Path, description: dict[str, Any]) -> str:
    """The MLflow run of the lineage, running, with its tags, parameters and dataset."""
    from mlflow.entities import Param, RunTag

    experiment_id = _experiment_id(client, description)
    tags = {key: str(value) for key, value in description["tags"].items()}
    run = _find_run(client, experiment_id, description)
    if run is not None:
        client.update_run(run.info.run_id, status="RUNNING")
    else:
        # With its tags from the first moment: an outage right after must not make a second run.
        first = next(iter(read_events(run_dir)), {"timestamp_ms": None})["timestamp_ms"]
        run = client.create_run(experiment_id, start_time=first, run_name=description["run_name"], tags=tags)
    run_id = run.info.run_id
    # Parameters cannot be changed in MLflow: a resume sends only what an outage kept back.
    params = [Param(k, str(v)) for k, v in description["params"].items() if k not in run.data.params]
    for start in range(0, len(params), _MAX_PARAMS_A_BATCH):
        client.log_batch(run_id, params=params[start : start + _MAX_PARAMS_A_BATCH])
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    if "dataset" in description and not run.inputs.dataset_inputs:
        _log_dataset(client, run_id, description["dataset"])
    return run_id


def _experiment_id(client: Any, description: dict[str, Any]) -> str:
    from mlflow.exceptions import MlflowException

    name = description["experiment_name"]
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return experiment.experiment_id
    # Beside the default store, wherever ``narrowbert sync`` is started; a server has a place of its own.
    is_default = "MLFLOW_TRACKING_URI" not in os.environ
    folder = Path(description["default_store"].removeprefix("sqlite:///")).parent / "mlruns" if is_default else None
    try:
        return client.create_experiment(
            name,
            artifact_location=folder.as_uri() if folder else None,
            # The kind opens the experiment on its training pages instead of those for language-model traces.
            tags={"mlflow.experimentKind": "custom_model_development"},
        )
    except MlflowException:  # another run has just made it
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise
        return experiment.experiment_id


def _log_dataset(client: Any, run_id: str, dataset: dict[str, Any]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    entity = Dataset(
        name=dataset["name"],
        digest=dataset["root_hash"][:_MAX_DIGEST],
        source_type="local",
        source=json.dumps({"uri": ", ".join(paths_of(dataset["path"]))}),
        profile=json.dumps(dataset["profile"]),
    )
    tags = [InputTag("mlflow.data.context", "training"), InputTag("root_hash", dataset["root_hash"])]
    client.log_inputs(run_id, [DatasetInput(entity, tags)])


def _send_new_points(client: Any, run_dir: Path, progress: "_Progress") -> bool:
    """Send complete lines past the stored offset, a batch at a time; True if there were any."""
    from mlflow.entities import Metric

    spool, offset = run_dir / SPOOL, progress.offset
    if not spool.exists():
        return False
    metrics: list[Any] = []
    with spool.open("rb") as file:
        file.seek(max(0, offset - 1))
        if offset and file.read(1) != b"\n":  # a node that lost its power took lines with it that were sent already
            offset = file.seek(0)
        while len(metrics) < _MAX_METRICS_A_BATCH // 2 and (line := file.readline()).endswith(b"\n"):
            try:
                point = parse_point(line, spool, 0)
            except UserError:  # only now is its number worth counting
                parse_point(line, spool, spool.read_bytes()[:offset].count(b"\n") + 1)
                raise
            offset += len(line)
            metrics += [Metric(key, value, point.timestamp_ms, point.step) for key, value in point.metrics.items()]
    if not metrics:
        return False
    client.log_batch(progress.run_id, metrics=metrics)
    progress.offset = offset
    progress.write(run_dir)
    return True


@dataclasses.dataclass
class _Progress:
    """What of a run has arrived in one MLflow run."""

    run_id: str
    """The MLflow run."""
    offset: int = 0
    """Bytes of the spool."""
    artifacts: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    """Size and time of change of each file that was sent, by its place in MLflow."""

    @classmethod
    def read(cls, run_dir: Path, run_id: str) -> "_Progress":
        """What is stored; nothing for another MLflow run (other server, other experiment, deleted)."""
        try:
            stored = json.loads((run_dir / _PROGRESS).read_text())
            if stored["run_id"] == run_id:
                return cls(run_id=run_id, offset=int(stored["offset"]), artifacts=dict(stored.get("artifacts", {})))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass  # sending again is harmless
        return cls(run_id=run_id)

    def write(self, run_dir: Path) -> None:
        write_atomically(run_dir / _PROGRESS, json.dumps(dataclasses.asdict(self)))


def _send_artifacts(
    client: Any, run_dir: Path, description: dict[str, Any], progress: _Progress, *, last: bool
) -> None:
    """Send the run's files that are new or changed; at the end with the page about the run."""
    if last:
        with contextlib.suppress(UserError):  # nothing to show yet
            write_report([run_dir], run_dir / "report.html")
    place = f"environment/attempt-{description.get('attempt', 1)}.json"
    if "environment" in description and place not in progress.artifacts:
        client.log_dict(progress.run_id, description["environment"], place)
        progress.artifacts[place] = []
        progress.write(run_dir)
    for path, folder in _artifacts(run_dir, description):
        try:
            facts = path.stat()
        except FileNotFoundError:  # an old checkpoint that has just been removed
            continue
        state, place = [facts.st_size, facts.st_mtime_ns], f"{folder or ''}/{path.name}"
        if progress.artifacts.get(place) == state:
            continue
        client.log_artifact(progress.run_id, str(path), folder)
        progress.artifacts[place] = state
        progress.write(run_dir)


def _artifacts(run_dir: Path, description: dict[str, Any]) -> Iterator[tuple[Path, str | None]]:
    """(file, folder in MLflow): configuration, events, pages, checkpoint manifests; weights where asked for."""
    for name in ("config.yaml", "run.json", EVENTS, "report.html"):
        if (run_dir / name).exists():
            yield run_dir / name, None
    shards = paths_of(description.get("dataset", {}).get("path", ()))
    for number, data_report in enumerate(Path(path) / "report.html" for path in shards):
        if data_report.is_file():
            yield data_report, "data" if len(shards) == 1 else f"data/{number}"
    checkpoints = sorted((run_dir / "checkpoints").glob("step-*"))
    for folder in checkpoints:
        for path in (folder / "manifest.json", folder / "trainer.json"):
            if path.exists():
                yield path, f"checkpoints/{folder.name}"
    if description.get("log_weights") and checkpoints and (run_dir / "DONE").exists():
        for path in sorted(checkpoints[-1].glob("weights-*.safetensors")):
            yield path, f"checkpoints/{checkpoints[-1].name}"


# --------------------------------------------------------------------------------------- process


def main(run_dir: Path) -> int:
    """Ship until standard input is closed and everything has arrived; 1 if something is left."""
    os.nice(10)  # the machine is for training
    # A scheduler that ends the job signals every process of it; this one ends after the trainer.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # What MLflow's libraries print may hold the server's address with its password.
    sys.stdout = sys.stderr = RedactingStream(sys.stderr)
    closed = threading.Event()
    threading.Thread(target=_watch_standard_input, args=(closed,), daemon=True).start()
    backoff = 1.0
    with (run_dir / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one shipper a run; that of the start before may be ending
        while True:
            last_try, started = closed.is_set(), time.monotonic()
            try:
                ship(run_dir, finished=closed.wait)
                return 0
            except Exception as error:  # an outage: the spool keeps everything, try again
                print(f"{time.strftime('%FT%T')} MLflow: {one_line(str(error))}", flush=True)
            if last_try:
                return 1
            if time.monotonic() - started > _LONGEST_BACKOFF_S:  # it worked for a while
                backoff = 1.0
            closed.wait(backoff)
            backoff = min(2 * backoff, _LONGEST_BACKOFF_S)


def _watch_standard_input(closed: threading.Event) -> None:
    """The trainer's end is the end of standard input; some time after it this process ends as well."""
    while sys.stdin.buffer.read(1):
        pass
    closed.set()
    time.sleep(LAST_SHIPMENT_S - 5)
    print(f"{time.strftime('%FT%T')} MLflow: the rest is left for narrowbert sync", flush=True)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
