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
from typing import TYPE_CHECKING

from data_prep.contract.command_line import UserError, one_line
from data_prep.contract.files import write_atomically
from data_prep.contract.redaction import RedactingStream
from pipeline.data.mixture import paths_of
from pipeline.reports.comparison import write_report
from pipeline.runs.records import EVENTS, SPOOL, parse_point
from pipeline.tracking.description import DESCRIPTION, LAST_SHIPMENT_S, Description
from pipeline.tracking.mlflow_client import connect, find_or_create_run, mlflow_for_users, read_description

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_PROGRESS = "tracking.offset"
_LOCK = "tracking.lock"
_MAX_METRICS_PER_BATCH = 1000  # MLflow's own limit
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
    client = connect(description)
    run_id = find_or_create_run(client, run_dir, description)
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


def sync(run_dir: Path) -> None:
    """Send whatever of a run has not reached MLflow (``narrowbert sync RUN_DIR``).

    Raises:
        UserError: not a run directory, MLflow cannot be reached, or the run's own shipper is at work.
    """
    read_description(run_dir)
    with (run_dir / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{run_dir} is being sent by another process: it is training, or has just ended; try again later"
            ) from error
        with mlflow_for_users():
            ship(run_dir, finished=lambda _: True)


def _send_new_points(client: "MlflowClient", run_dir: Path, progress: "_Progress") -> bool:
    """Send complete lines past the stored offset, a batch at a time; True if there were any."""
    from mlflow.entities import Metric

    spool, offset = run_dir / SPOOL, progress.offset
    if not spool.exists():
        return False
    metrics: list[Metric] = []
    with spool.open("rb") as file:
        file.seek(max(0, offset - 1))
        if offset and file.read(1) != b"\n":  # a node that lost its power took lines with it that were sent already
            offset = file.seek(0)
        while len(metrics) < _MAX_METRICS_PER_BATCH // 2 and (line := file.readline()).endswith(b"\n"):
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
        write_atomically(run_dir / _PROGRESS, json.dumps(dataclasses.asdict(self)), durable=True)


def _send_artifacts(
    client: "MlflowClient", run_dir: Path, description: Description, progress: _Progress, *, last: bool
) -> None:
    """Send the run's files that are new or changed; at the end with the page about the run."""
    if last:
        with contextlib.suppress(UserError):  # nothing to show yet
            write_report([run_dir], run_dir / "report.html")
    place = f"environment/attempt-{description.get('attempt', 1)}.json"
    if "environment" in description and place not in progress.artifacts:
        client.log_dict(progress.run_id, dict(description["environment"]), place)
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


def _artifacts(run_dir: Path, description: Description) -> Iterator[tuple[Path, str | None]]:
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
        fcntl.flock(lock, fcntl.LOCK_EX)  # one shipper per run; that of the start before may be ending
        while True:
            last_try, started = closed.is_set(), time.monotonic()
            try:
                ship(run_dir, finished=closed.wait)
                return 0
            except Exception as error:  # an outage: the spool keeps everything, try again
                _say(one_line(str(error)))
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
    _say("the rest is left for narrowbert sync")
    os._exit(1)


def _say(text: str) -> None:
    """A line into the shipper's log, with the time."""
    sys.stderr.write(f"{time.strftime('%FT%T')} MLflow: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
