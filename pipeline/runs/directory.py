"""The run directory: what may be started in it, and the small files that describe the run.

``config.yaml`` the resolved configuration, ``run.json`` lineage, attempts and data, ``tokenizer.json``,
``checkpoints/``, ``metrics.jsonl``, ``logs/rank-N.log``, and ``DONE`` once the last step is saved. Imports no torch.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import yaml

from data_prep.contract.command_line import UserError, config_as_dict, one_line
from data_prep.contract.files import is_unfinished
from data_prep.contract.redaction import redact
from pipeline.config import RESUMABLE_CHANGES, RunConfig, check_config
from pipeline.data.mixture import Mixture, open_mixture


class MixtureFacts(TypedDict, total=False):
    """What a run records of several shard folders; empty for one."""

    weights: list[int]
    """The share of each folder."""
    root_hashes: list[str]
    """Of each folder."""


class DataFacts(MixtureFacts):
    """What a run records of its shards."""

    root_hash: str
    """Of the folder, or of the mixture."""
    path: str | list[str]
    """The folder, or the folders of a mixture."""
    seq_length: int
    """S, tokens of a row."""
    masked_per_row: int
    """P, mask slots of a row."""
    vocab_size: int
    """V, one more than the largest token id of the tokenizer."""
    special_ids: dict[str, int]
    """{"pad": id, "unk": id, "cls": id, "sep": id, "mask": id}."""


class RunRecord(TypedDict):
    """``run.json``."""

    lineage_id: str
    """The run, over all its starts."""
    attempt: int
    """Starts so far."""
    data: DataFacts
    """The shards of the newest start."""
    arithmetic: list[int]
    """Settings of the newest start that change the rounding of every figure."""
    order_version: NotRequired[int]
    """Of the order of the rows; 1 where it is missing."""
    eval_rows: NotRequired[int]
    """Validation rows of the newest start."""
    computed_otherwise: NotRequired[dict[str, int]]
    """``Attempt.may_differ_until``."""


def prepare_run(config: RunConfig, world_size: int) -> Mixture:
    """Everything that can be refused before a process is started; makes the run directory.

    Raises:
        UserError: the configuration, the shards or the run directory do not fit.
    """
    shards = check_run(config, world_size)
    try:
        (Path(config.run_dir) / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make run_dir {config.run_dir}: {error.strerror}") from error
    return shards


def check_run(config: RunConfig, world_size: int) -> Mixture:
    """The checks of ``prepare_run`` alone: nothing is written.

    Raises:
        UserError: the configuration, the shards or the run directory do not fit.
    """
    if not config.run_dir.strip():
        raise UserError("no run_dir: give a folder, for example --run_dir runs/my-first")
    check_config(config, world_size=world_size)
    shards = open_mixture(config.data.path, config.data.weights)
    if shards.seq_length > config.model.max_position_embeddings:
        raise UserError(
            f"the rows of {' and '.join(shards.names)} have {shards.seq_length} tokens: "
            f"give model.max_position_embeddings of at least that (it is {config.model.max_position_embeddings})"
        )
    _check_run_dir(config, shards)
    return shards


def is_finished(config: RunConfig) -> bool:
    """Whether the run has done its last step and saved it."""
    return (Path(config.run_dir) / "DONE").exists()


def has_checkpoint(config: RunConfig) -> bool:
    """Whether the run has saved anything to resume from, intact or not."""
    return any((Path(config.run_dir) / "checkpoints").glob("step-*"))


def _check_run_dir(config: RunConfig, shards: Mixture) -> None:
    run_dir = Path(config.run_dir)
    stored_path = run_dir / "config.yaml"
    if not stored_path.exists():
        # A job that was sent and a start that was killed early leave these; anything else belongs to somebody.
        early = {"submission", "logs", "run.json", ".run.json", ".config.yaml", "events.jsonl"}
        if run_dir.is_dir() and {path.name for path in run_dir.iterdir() if not is_unfinished(path)} - early:
            raise UserError(f"run_dir {run_dir} holds other files: give a new or empty folder")
        return
    stored = flatten(read_run_config(run_dir))
    current = flatten(redact(config_as_dict(config)))  # as it was stored
    different = [
        f"{key} {stored.get(key)} there, {current.get(key)} here"
        for key in sorted(stored.keys() | current.keys())
        if stored.get(key) != current.get(key) and key not in RESUMABLE_CHANGES
    ]
    if read_run_record(run_dir)["data"]["root_hash"] != shards.root_hash:
        different.append("the shards' contents")
    if different:
        raise UserError(
            f"run_dir {run_dir} holds a run of another configuration ({'; '.join(different)}): "
            "give another --run_dir, or the same values to resume it"
        )


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def open_run_shards(run_dir: Path) -> Mixture:
    """The shards that a run was trained on.

    Raises:
        UserError: no run, the shards are gone, or others have taken their place.
    """
    data = read_run_record(run_dir)["data"]
    shards = open_mixture(data["path"], data.get("weights"))
    if shards.root_hash != data["root_hash"]:
        places = " and ".join(shards.names)
        raise UserError(f"{places}: not the data that {run_dir} was trained on; restore those shards")
    return shards


def read_run_config(run_dir: Path) -> dict[str, Any]:
    """``config.yaml``, the resolved configuration.

    Raises:
        UserError: the folder holds no run, or the file is damaged.
    """
    path = run_dir / "config.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{run_dir} is no run directory: it has no config.yaml") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(one_line(f"{path} cannot be read: {error}")) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it holds no configuration")
    return content


def read_run_record(run_dir: Path) -> RunRecord:
    """``run.json``: lineage id, attempts so far, and what the shards were (``data``).

    Raises:
        UserError: the folder holds no run, or its record is damaged.
    """
    path = run_dir / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{run_dir} is no run directory: it has no run.json") from error
    except (OSError, ValueError) as error:
        raise UserError(one_line(f"{path} cannot be read: {error}")) from error
    if not isinstance(record, dict) or not {"lineage_id", "attempt", "data", "arithmetic"} <= record.keys():
        raise UserError(f"{path} is damaged: it does not describe a run")
    return cast(RunRecord, record)
