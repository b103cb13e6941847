"""Metrics: a spool on disk, and a shipper process that carries it to MLflow.

The trainer never calls MLflow, whose client blocks for minutes when a server is down. Rank 0
appends each point once to ``RUN_DIR/metrics.jsonl``; the shipper, a process of its own, sends it
in batches and remembers how far it got. What it could not send stays for ``narrowbert sync``.
Sending a point twice is harmless: MLflow drops exact duplicates, and times are fixed when written.
"""

import fcntl
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from data_prep.command_line import UserError

SPOOL = "metrics.jsonl"
DESCRIPTION = "tracking.json"
_OFFSET = "tracking.offset"
_LOCK = "tracking.lock"
_LOG = "logs/tracking.log"
_MAX_METRICS_A_BATCH = 1000  # MLflow's own limit
_MAX_PARAMS_A_BATCH = 100
_POLL_S = 1.0
_LAST_SHIPMENT_S = 60.0


class Spool:
    """The append-only file of a run's metrics; one JSON object a line: step, timestamp_ms, metrics."""

    def __init__(self, run_dir: Path, *, compare: bool = True) -> None:
        path = run_dir / SPOOL
        self._compare = compare
        _cut_torn_line(path)
        self._known = _read_points(path)
        self._file = path.open("a", encoding="utf-8")
        self.changed: list[str] = []

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append metrics of optimizer step ``step`` (1 is the first).

        A point that is there already, from before a resume, is kept as it is. With ``compare``, a
        *loss* that differs from it adds a line to ``changed``: the run is not deterministic.
        """
        known = self._known.setdefault(step, {})
        new = {}
        for key, value in metrics.items():
            if key not in known:
                new[key] = known[key] = value
            elif self._compare and key.endswith("/loss") and repr(known[key]) != repr(value):
                self.changed.append(f"{key} of step {step} is {value!r}, was {known[key]!r} before the resume")
        if new:
            record = {"step": step, "timestamp_ms": time.time_ns() // 1_000_000, "metrics": new}
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()


def _cut_torn_line(path: Path) -> None:
    """Drop a last line that a kill left half written. For the file's one writer only."""
    if path.exists():
        with path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def _read_points(path: Path) -> dict[int, dict[str, float]]:
    """The points of the complete lines, by step."""
    known: dict[int, dict[str, float]] = {}
    content = path.read_bytes() if path.exists() else b""
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            record = json.loads(line)
            known.setdefault(record["step"], {}).update(record["metrics"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number} is damaged: remove the line ({error})") from error
    return known


def read_metrics(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Every metric of a run as (step, value) pairs in order of step.

    Raises:
        UserError: naming a damaged line.
    """
    series: dict[str, list[tuple[int, float]]] = {}
    for step, metrics in sorted(_read_points(run_dir / SPOOL).items()):
        for key, value in metrics.items():
            series.setdefault(key, []).append((step, value))
    return series


# -------------------------------------------------------------------------------------- trainer


def describe_run(run_dir: Path, description: dict[str, Any]) -> None:
    """Leave for the shipper what MLflow shall know of the run: names, parameters, tags."""
    if "MLFLOW_TRACKING_URI" not in os.environ:
        # Absolute, so that ``narrowbert sync`` finds it from any folder.
        description = {**description, "default_store": f"sqlite:///{Path('mlflow.db').resolve()}"}
    temporary = run_dir / f".{DESCRIPTION}"
    temporary.write_text(json.dumps(description, indent=1), encoding="utf-8")
    temporary.replace(run_dir / DESCRIPTION)


class Shipper:
    """The shipper process as the trainer holds it. It ends by itself when the trainer dies."""

    def __init__(self, run_dir: Path) -> None:
        with (run_dir / _LOG).open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pipeline.tracking", str(run_dir)],
                stdin=subprocess.PIPE,  # closed by whatever ends the trainer: the sign to finish
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for the trainer; the shipper still sends the rest
            )

    def finish(self) -> bool:
        """Let it send the rest, for a bounded time. True if everything arrived."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            return self._process.wait(_LAST_SHIPMENT_S) == 0
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return False


# -------------------------------------------------------------------------------------- shipper


def ship(run_dir: Path, *, finished: Callable[[float], bool]) -> None:
    """Send the spool to MLflow until ``finished(seconds to wait)`` is true and nothing is left.

    Raises:
        Exception: whatever MLflow's client raises; the offset on disk stays at what has arrived.
    """
    # The client's own settings, shortened: its defaults block for minutes on a server that is down.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    with (run_dir / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one shipper a run
        description = json.loads((run_dir / DESCRIPTION).read_text(encoding="utf-8"))
        client = _connect(description)
        run_id = _find_or_create_run(client, run_dir, description)
        while True:
            last = finished(_POLL_S)
            sent = _send_new_points(client, run_id, run_dir)
            if last and not sent:
                break
        status = "FINISHED" if (run_dir / "DONE").exists() else "KILLED"
        client.set_terminated(run_id, status=status)


def _connect(description: dict[str, Any]) -> Any:
    from mlflow.tracking import MlflowClient

    store = os.environ.get("MLFLOW_TRACKING_URI") or description.get("default_store")
    if store is None:
        raise UserError("set MLFLOW_TRACKING_URI as it was for the training")
    return MlflowClient(tracking_uri=store)


def _find_or_create_run(client: Any, run_dir: Path, description: dict[str, Any]) -> str:
    from mlflow.entities import Param, RunTag
    from mlflow.exceptions import MlflowException

    name = description["experiment_name"]
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            # The kind opens the experiment on its training pages instead of those for language-model traces.
            experiment_id = client.create_experiment(name, tags={"mlflow.experimentKind": "custom_model_development"})
        except MlflowException:  # another run has just made it
            experiment_id = client.get_experiment_by_name(name).experiment_id
    else:
        experiment_id = experiment.experiment_id
    tags = {key: str(value) for key, value in description["tags"].items()}
    lineage = tags["narrowbert.lineage"]
    found = client.search_runs([experiment_id], filter_string=f"tags.`narrowbert.lineage` = '{lineage}'")
    if found:
        run = found[0]
        client.update_run(run.info.run_id, status="RUNNING")
    else:
        # With its tags from the first moment: an outage right after must not make a second run.
        run = client.create_run(experiment_id, run_name=description["run_name"], tags=tags)
    run_id = run.info.run_id
    # Parameters cannot be changed in MLflow: a resume sends only what an outage kept back.
    params = [Param(k, str(v)) for k, v in description["params"].items() if k not in run.data.params]
    for start in range(0, len(params), _MAX_PARAMS_A_BATCH):
        client.log_batch(run_id, params=params[start : start + _MAX_PARAMS_A_BATCH])
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    client.log_artifact(run_id, str(run_dir / "config.yaml"))
    return run_id


def _send_new_points(client: Any, run_id: str, run_dir: Path) -> bool:
    """Send complete lines past the stored offset, a batch at a time; True if there were any."""
    from mlflow.entities import Metric

    offset = _read_offset(run_dir, run_id)
    spool = run_dir / SPOOL
    if not spool.exists():
        return False
    with spool.open("rb") as file:
        file.seek(offset)
        metrics: list[Any] = []
        while len(metrics) < _MAX_METRICS_A_BATCH // 2 and (line := file.readline()).endswith(b"\n"):
            offset += len(line)
            record = json.loads(line)
            for key, value in record["metrics"].items():
                metrics.append(Metric(key, value, record["timestamp_ms"], record["step"]))
    if not metrics:
        return False
    client.log_batch(run_id, metrics=metrics)
    temporary = run_dir / f".{_OFFSET}"
    temporary.write_text(json.dumps({"run_id": run_id, "offset": offset}))
    temporary.replace(run_dir / _OFFSET)
    return True


def _read_offset(run_dir: Path, run_id: str) -> int:
    """How much of the spool this MLflow run has; 0 for another one (other server, experiment, deleted)."""
    try:
        stored = json.loads((run_dir / _OFFSET).read_text())
        return stored["offset"] if stored["run_id"] == run_id else 0
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return 0  # sending again is harmless


def sync(run_dir: Path) -> None:
    """Send whatever of a run's spool has not reached MLflow (``narrowbert sync RUN_DIR``).

    Raises:
        UserError: not a run directory, or MLflow cannot be reached.
    """
    if not (run_dir / DESCRIPTION).exists():
        raise UserError(f"{run_dir} is no run directory with tracking: it has no {DESCRIPTION}")
    try:
        ship(run_dir, finished=lambda _: True)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"MLflow cannot be reached, nothing is lost, try again later: {error}") from error


def _standard_input_closed(wait_s: float) -> bool:
    readable, _, _ = select.select([sys.stdin], [], [], wait_s)
    return bool(readable)


if __name__ == "__main__":
    _run_dir = Path(sys.argv[1])
    while True:
        try:
            ship(_run_dir, finished=_standard_input_closed)
            break
        except Exception as _error:  # an outage: the spool keeps everything, try again
            print(f"{time.strftime('%FT%T')} MLflow: {_error}", flush=True)
            if _standard_input_closed(10.0):
                sys.exit(1)
