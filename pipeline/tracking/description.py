"""MLflow as the trainer sees it: a description left on disk, and a shipper process.

The trainer never calls MLflow, whose client blocks for minutes when a server is down. Rank 0
appends each point to the spool (``runs.records``). The shipper (``shipping``), a process of its own,
sends it in batches and remembers how far it got. What it could not send stays for ``narrowbert sync``.
"""

import getpass
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from data_prep.contract.command_line import UserError, config_as_dict
from data_prep.contract.files import write_atomically
from data_prep.contract.redaction import redact, redact_text
from data_prep.contract.shard_format import SPLITS
from pipeline.config import RunConfig, TrackingConfig
from pipeline.data.mixture import Mixture
from pipeline.model.parameters import count_parameters
from pipeline.runs.ancestry import Parent
from pipeline.runs.attempts import Attempt
from pipeline.runs.directory import data_facts, flatten
from pipeline.runs.records import read_events

DESCRIPTION = "tracking.json"
LAST_SHIPMENT_S = 60.0
"""How long the end of a run waits at most for what is not sent yet."""

_STORES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks", "uc")
_PACKAGES = (
    "narrowbert", "torch", "deepspeed", "megatron-core", "transformers", "tokenizers", "safetensors",
    "webdataset", "numpy", "mlflow", "nvidia-nccl-cu12",
)  # fmt: skip

# Not all variables: an environment is full of other people's business.
_ENVIRONMENT = (
    "CUDA_", "NCCL_", "GLOO_", "TORCH_", "PYTORCH_", "OMP_", "MKL_", "MALLOC_", "DS_", "SLURM_", "MASTER_",
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "MLFLOW_", "NARROWBERT_",
)  # fmt: skip

_LONGEST_TAG = 4000
_LONGEST_NAME = 500  # of an MLflow dataset


class DatasetDescription(TypedDict):
    """The shards, as MLflow shall know them."""

    name: str
    """The names of the folders."""
    path: str | list[str]
    """The folder, or the folders of a mixture."""
    root_hash: str
    """Of the folder, or of the mixture."""
    profile: dict[str, Any]
    """Rows of each split, and what the run records of its shards."""


class Environment(TypedDict):
    """What a start ran on."""

    python: str
    """Its version."""
    platform: str
    """The operating system."""
    packages: dict[str, str]
    """The version of each that matters."""
    variables: dict[str, str]
    """Environment variables that matter."""


class Description(TypedDict):
    """``tracking.json``: what MLflow shall know of a run. Parts of it are optional for the sake of older runs."""

    experiment_name: str
    """The MLflow experiment."""
    run_name: str
    """The name of the run there."""
    params: dict[str, Any]
    """The configuration, flattened, and facts of model and shards."""
    tags: dict[str, str | int]
    """By name; ``narrowbert.lineage`` identifies the run."""
    attempt: NotRequired[int]
    """The newest start."""
    dataset: NotRequired[DatasetDescription]
    """The shards."""
    environment: NotRequired[Environment]
    """What the newest start runs on."""
    log_weights: NotRequired[bool]
    """Whether the last checkpoint's weights become artifacts."""
    default_store: NotRequired[str]
    """The store where MLFLOW_TRACKING_URI names none."""


def check_tracking(tracking: TrackingConfig) -> None:
    """Refuse a tracking address that no outage explains.

    Raises:
        UserError: MLFLOW_TRACKING_URI names no kind of store that MLflow takes.
    """
    if tracking.enabled:
        named_store()


def named_store() -> str | None:
    """The store that MLFLOW_TRACKING_URI names; None where it is unset or empty.

    Raises:
        UserError: it names no kind of store that MLflow takes.
    """
    address = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not address:
        return None
    before, _, rest = address.partition(":")
    scheme = before.split("+")[0].lower()
    if scheme not in _STORES or (scheme not in ("databricks", "uc") and not rest.startswith("//")):
        raise UserError(
            f"environment variable MLFLOW_TRACKING_URI begins with '{redact_text(address)[:20]}': give http://..., "
            "https://..., sqlite:///FILE.db or postgresql://... (MLflow no longer takes folders), or unset it for "
            "sqlite:///mlflow.db"
        )
    return address


def default_store() -> str:
    """The store where none is named: a file in the working folder, absolute so that it is found from any other."""
    return f"sqlite:///{Path('mlflow.db').resolve()}"


def describe_run(
    run_dir: Path, config: RunConfig, shards: Mixture, attempt: Attempt, *, world_size: int, device: str
) -> None:
    """Leave for the shipper what MLflow shall know of the run, without secrets.

    Reads the run's starts from ``events.jsonl``, this one included.
    """
    starts = [event for event in read_events(run_dir) if event["kind"] == "start"]
    facts = {
        "num_parameters": count_parameters(config.model, shards.vocab_size),
        **flatten({"shards": data_facts(shards)}),
    }
    tags = {
        "narrowbert.lineage": attempt.lineage_id,
        "narrowbert.attempt": attempt.number,
        "narrowbert.processes": world_size,
        "narrowbert.device": device,
        "narrowbert.version": _version("narrowbert") or "unknown",
        "narrowbert.hosts": _joined(host for start in starts for host in start.get("hosts", [])),
        "narrowbert.job_ids": _joined(job_id for start in starts if (job_id := start.get("job_id"))),
        **_parent_tags(attempt.parent),
        "mlflow.user": _user(),
        "mlflow.source.name": "narrowbert train",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": _commit(),
    }
    write_description(
        run_dir,
        {
            "experiment_name": config.tracking.experiment_name,
            "run_name": config.tracking.run_name or run_dir.resolve().name,
            "attempt": attempt.number,
            "params": {**flatten(config_as_dict(config)), **facts},
            "tags": {key: value for key, value in tags.items() if value not in ("", None)},
            "dataset": _dataset(shards),
            "environment": _environment(),
            "log_weights": config.tracking.log_weights,
        },
    )


def _parent_tags(parent: Parent | None) -> dict[str, str | int]:
    """The checkpoint of another run that the run began at; its lineage is that run's ``narrowbert.lineage``."""
    if parent is None:
        return {}
    return {
        "narrowbert.parent.lineage": parent["lineage_id"],
        "narrowbert.parent.run": parent["run"],
        "narrowbert.parent.step": parent["step"],
        "narrowbert.parent.sha256": parent["sha256"],
        "narrowbert.parent.moments": str(parent["moments"]).lower(),
        "narrowbert.steps_before": parent["steps"],
        "narrowbert.tokens_before": parent["tokens"],
    }


def write_description(run_dir: Path, description: Description) -> None:
    """Write ``tracking.json``, redacted, with the default store where no other is set."""
    description = redact(description)
    if named_store() is None:
        description["default_store"] = default_store()
    write_atomically(run_dir / DESCRIPTION, json.dumps(description, indent=1), durable=True)


def _dataset(shards: Mixture) -> DatasetDescription:
    facts = data_facts(shards)
    splits = {name: shards.split(name).num_rows for name in SPLITS}
    return {
        "name": "+".join(Path(location).name for location in shards.locations)[:_LONGEST_NAME],
        "path": facts["path"],
        "root_hash": shards.root_hash,
        "profile": {**{f"{name}_rows": rows for name, rows in splits.items()}, **facts},
    }


def _environment() -> Environment:
    variables = {key: value for key, value in sorted(os.environ.items()) if key.startswith(_ENVIRONMENT)}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "variables": variables,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's number without a name
        return str(os.getuid())


def _commit() -> str | None:
    """The commit of this code, with '-dirty' after local changes; None outside a git checkout."""
    here = Path(__file__).parents[2]
    if not (here / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
        return described.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _joined(values: Iterable[str]) -> str:
    text = ", ".join(dict.fromkeys(map(str, values)))
    return text if len(text) <= _LONGEST_TAG else text[: _LONGEST_TAG - 4] + " ..."
