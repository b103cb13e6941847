"""The connection to MLflow: its client, the experiment and the run of a run directory."""

import contextlib
import itertools
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.contract.command_line import UserError, one_line
from data_prep.contract.redaction import RedactingStream, redact_text
from pipeline.data.mixture import paths_of
from pipeline.runs.records import read_events
from pipeline.tracking.description import DESCRIPTION, DatasetDescription, Description, named_store
from pipeline.tracking.embedded_store import make_store

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

_MAX_PARAMS_PER_BATCH = 100
_MAX_DIGEST = 36  # of an MLflow dataset

_REFUSALS = (
    "ALREADY_EXISTS",
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "NOT_IMPLEMENTED",
    "PERMISSION_DENIED",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
    "UNAUTHENTICATED",
)
"""MLflow's codes of what does not pass by waiting."""
_OLD_SCHEMA = "out-of-date database schema"  # its message names the command that mends it


def connect_to_run(run_dir: Path) -> tuple[str, str]:
    """The tracking store of a run that was trained, and the id of its run there.

    Raises:
        UserError: not a run directory with tracking, MLflow cannot be reached or does not have the run.
    """
    description = read_description(run_dir)
    with mlflow_for_users():
        client = connect(description)
        experiment = client.get_experiment_by_name(description["experiment_name"])
        run = experiment and _find_run(client, experiment.experiment_id, description)
        if not run:
            command = f"narrowbert sync {shlex.quote(str(run_dir))}"
            raise UserError(f"MLflow does not have the run {run_dir}: send it first with {command}")
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


def read_description(run_dir: Path) -> Description:
    """``tracking.json`` of a run.

    Raises:
        UserError: not a run directory with tracking, or the file is damaged.
    """
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
        if getattr(error, "error_code", None) in _REFUSALS or _OLD_SCHEMA in str(error):
            raise UserError(f"MLflow refuses it, nothing is lost: {message}") from error
        raise UserError(f"MLflow cannot be reached, nothing is lost, try again later: {message}") from error


def _set_up_client() -> None:
    """MLflow's settings, before it is imported; the user's own come first."""
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # Its defaults block for minutes on a server that is down. The pauses between tries are ours.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


def tracking_store(description: Description) -> str:
    """Where the run is tracked: the environment's server, or else the file that training used.

    Raises:
        UserError: training had a server that this process does not know.
    """
    store = named_store() or description.get("default_store")
    if store is None:
        raise UserError("set MLFLOW_TRACKING_URI as it was for the training")
    return store


def connect(description: Description) -> "MlflowClient":
    """A client of the store in which the run is tracked."""
    _set_up_client()
    store = tracking_store(description)
    make_store(store)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=store)


def _find_run(client: "MlflowClient", experiment_id: str, description: Description) -> "Run | None":
    lineage = description["tags"]["narrowbert.lineage"]
    found = client.search_runs([experiment_id], filter_string=f"tags.`narrowbert.lineage` = '{lineage}'")
    return found[0] if found else None


def find_or_create_run(client: "MlflowClient", run_dir: Path, description: Description) -> str:
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
    for start in range(0, len(params), _MAX_PARAMS_PER_BATCH):
        client.log_batch(run_id, params=params[start : start + _MAX_PARAMS_PER_BATCH])
    client.log_batch(run_id, tags=list(itertools.starmap(RunTag, tags.items())))
    if "dataset" in description and not (run.inputs and run.inputs.dataset_inputs):
        _log_dataset(client, run_id, description["dataset"])
    return run_id


def _experiment_id(client: "MlflowClient", description: Description) -> str:
    from mlflow.exceptions import MlflowException

    name = description["experiment_name"]
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        if experiment.lifecycle_stage == "deleted":
            raise UserError(
                f"the MLflow experiment {name!r} is deleted: restore it with mlflow experiments restore "
                f"--experiment-id {experiment.experiment_id}, or give another --tracking.experiment_name"
            )
        return experiment.experiment_id
    # Beside the default store, wherever ``narrowbert sync`` is started; a server has a place of its own.
    store = description.get("default_store") if named_store() is None else None
    folder = Path(store.removeprefix("sqlite:///")).parent / "mlruns" if store else None
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


def _log_dataset(client: "MlflowClient", run_id: str, dataset: DatasetDescription) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.exceptions import MlflowException

    entity = Dataset(
        name=dataset["name"],
        digest=dataset["root_hash"][:_MAX_DIGEST],
        source_type="local",
        source=json.dumps({"uri": ", ".join(paths_of(dataset["path"]))}),
        profile=json.dumps(dataset["profile"]),
    )
    tags = [InputTag("mlflow.data.context", "training"), InputTag("root_hash", dataset["root_hash"])]
    for tries_left in (2, 1, 0):
        try:
            client.log_inputs(run_id, [DatasetInput(entity, tags)])
        except MlflowException as error:
            # Another run has just logged the same shards: MLflow looks for them and then adds them, in two steps.
            if "IntegrityError" not in str(error) or not tries_left:
                raise
            time.sleep(0.2)
        else:
            return
