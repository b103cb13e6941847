"""The run directory: what may be started in it, and the small files that describe the run.

``config.yaml`` the resolved configuration, ``run.json`` lineage, attempts and data, ``tokenizer.json``,
``checkpoints/``, ``metrics.jsonl``, ``logs/rank-N.log``, and ``DONE`` once the last step is saved. Imports no torch.
"""

import dataclasses
import json
import uuid
from pathlib import Path
from typing import Any

import yaml

from data_prep.command_line import UserError, config_as_dict, one_line
from pipeline.config import RESUMABLE_CHANGES, RunConfig, check_config
from pipeline.mixture import Mixture, open_mixture
from pipeline.redaction import redact
from pipeline.spool import read_points


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
    """Whether the run has saved anything to go on from, intact or not."""
    return any((Path(config.run_dir) / "checkpoints").glob("step-*"))


def _check_run_dir(config: RunConfig, shards: Mixture) -> None:
    run_dir = Path(config.run_dir)
    stored_path = run_dir / "config.yaml"
    if not stored_path.exists():
        # A job that was sent and a start that was killed early leave these; anything else belongs to somebody.
        early = {"submission", "logs", "run.json", ".run.json", ".config.yaml", "events.jsonl"}
        if run_dir.is_dir() and {path.name for path in run_dir.iterdir()} - early:
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


def flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
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


def read_run_record(run_dir: Path) -> dict[str, Any]:
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
    return record


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of a run."""

    lineage_id: str
    """The run, over all its starts."""
    number: int
    """Which start this is; the first is 1."""
    computed_otherwise: dict[str, int]
    """Loss -> newest step whose recorded value other settings may have given: up to there a value that is
    computed again need not equal it to the bit."""


def register_attempt(run_dir: Path, config: RunConfig, shards: Mixture, world_size: int) -> Attempt:
    """Record one more start of a run. Rank 0 only."""
    # Other numbers here add the same terms in another order: equal within rounding, not to the bit.
    training = config.training
    arithmetic = [
        world_size, training.tensor_model_parallel_size, training.micro_batch_size, training.zero_stage,
    ]  # fmt: skip
    settings = {"arithmetic": arithmetic, "eval_rows": training.eval_rows}
    fresh = {"lineage_id": uuid.uuid4().hex, "attempt": 0, **settings}
    record = read_run_record(run_dir) if (run_dir / "run.json").exists() else fresh
    changed = {name for name, value in settings.items() if record.get(name) != value}
    otherwise = dict(record.get("computed_otherwise", {}))
    if changed:
        newest = max((point.step for point in read_points(run_dir)), default=0)
        otherwise["validation/loss"] = newest
        if "arithmetic" in changed:
            otherwise["train/loss"] = newest
    record |= {"attempt": record["attempt"] + 1, "data": data_facts(shards), **settings}
    record["computed_otherwise"] = otherwise
    write_atomically(run_dir / "run.json", json.dumps(record, indent=1) + "\n")
    return Attempt(lineage_id=record["lineage_id"], number=record["attempt"], computed_otherwise=otherwise)


def is_newest_attempt(run_dir: Path, number: int) -> bool:
    """Whether no later start of the run has been registered.

    A rank left behind on a lost node, or a second command given by mistake, must not write where the newest
    start does.
    """
    return read_run_record(run_dir)["attempt"] == number


def data_facts(shards: Mixture) -> dict[str, Any]:
    """What a run records of its shards."""
    path, *others = shards.locations
    facts: dict[str, Any] = {"root_hash": shards.root_hash, "path": [path, *others] if others else path}
    if others:
        facts |= {"weights": list(shards.shares), "root_hashes": [folder.root_hash for folder in shards.folders]}
    return facts | {
        "seq_length": shards.seq_length,
        "masked_per_row": shards.masked_per_row,
        "vocab_size": shards.vocab_size,
        "special_ids": shards.special_ids,
    }


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file whole: a reader sees the old content or the new, never half."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
