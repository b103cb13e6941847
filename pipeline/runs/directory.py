"""The run directory: what may be started in it, and the small files that describe the run.

``config.yaml`` the resolved configuration, ``run.json`` lineage, newest attempt and data, ``attempts/N`` who made
which start, ``tokenizer.json``,
``checkpoints/``, ``metrics.jsonl``, ``logs/rank-N.log``, and ``DONE`` once the last step is saved. Imports no torch.
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import yaml

from data_prep.contract.command_line import UserError, config_as_dict, one_line
from data_prep.contract.files import is_unfinished, write_atomically
from data_prep.contract.redaction import redact
from data_prep.contract.remote import retried
from pipeline.config import RESUMABLE_CHANGES, SCHEDULE_CHANGES, RunConfig
from pipeline.config_checks import check_config
from pipeline.data.mixture import Mixture, open_mixture
from pipeline.data.row_schedule import RowSchedule
from pipeline.runs.ancestry import Averaged, Parent
from pipeline.runs.schedule_change import changes_of_schedule, check_schedule_change

ATTEMPTS = "attempts"
"""The folder of the starts' claims."""

DONE = "DONE"
"""The file that says that a run's last step is saved, and how many there were."""


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
    eval_masked_per_row: NotRequired[int]
    """Masked positions of a row in evaluations; as many as the shards hold where it is missing."""
    eval_rows: NotRequired[int]
    """Validation rows of the newest start."""
    parent: NotRequired[Parent]
    """The checkpoint of another run that this one began at."""
    averaged_from: NotRequired[list[Averaged]]
    """Of a folder that ``narrowbert average`` made, and no training: what went in, the last one last."""
    computed_otherwise: NotRequired[dict[str, int]]
    """``Attempt.may_differ_until``."""


def prepare_run(config: RunConfig, world_size: int) -> Mixture:
    """Everything that can be refused before a process is started; makes the run directory.

    Raises:
        UserError: the configuration, the shards or the run directory do not fit.
    """
    shards = check_run(config, world_size)
    make_run_dir(config)
    return shards


def make_run_dir(config: RunConfig) -> None:
    """Make the run directory.

    Raises:
        UserError: it cannot be made.
    """
    try:
        (Path(config.run_dir) / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make run_dir {config.run_dir}: {error.strerror}") from error


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
    RowSchedule(config.training, shards.row_shape)  # refuses masks that the shards do not hold
    _check_run_dir(config, shards)
    return shards


def is_finished(config: RunConfig) -> bool:
    """Whether the run has done its last step and saved it. A finished run that is given more steps is not."""
    try:
        steps = (Path(config.run_dir) / DONE).read_text(encoding="utf-8").partition(" ")[0]
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        return True
    return not steps.isdigit() or int(steps) >= config.training.train_steps


def schedule_changes(config: RunConfig) -> list[str]:
    """What the configuration changes of the schedule that the run has had so far, and its old and new value."""
    run_dir = Path(config.run_dir)
    return changes_of_schedule(_stored_config(run_dir), config) if (run_dir / "config.yaml").exists() else []


def has_checkpoint(config: RunConfig) -> bool:
    """Whether the run has saved anything to resume from, intact or not."""
    return any((Path(config.run_dir) / "checkpoints").glob("step-*"))


def _check_run_dir(config: RunConfig, shards: Mixture) -> None:
    run_dir = Path(config.run_dir)
    stored_path = run_dir / "config.yaml"
    if not stored_path.exists():
        # A job that was sent and a start that was killed early leave these; anything else belongs to somebody.
        early = {"submission", "logs", "run.json", ATTEMPTS, ".run.json", ".config.yaml", "events.jsonl"}
        if run_dir.is_dir() and {path.name for path in run_dir.iterdir() if not is_unfinished(path)} - early:
            raise UserError(f"run_dir {run_dir} holds other files: give a new or empty folder")
        return
    if "averaged_from" in stored_record(run_dir):
        raise UserError(
            f"run_dir {run_dir} holds averaged weights: give another --run_dir, and this one as --init.from_run"
        )
    stored = _stored_config(run_dir)
    current = flatten(redact(config_as_dict(config)))  # as it was stored
    changed = [
        key
        for key in sorted(stored.keys() | current.keys())
        if stored.get(key) != current.get(key) and key not in RESUMABLE_CHANGES
    ]
    if changed and SCHEDULE_CHANGES.issuperset(changed):
        check_schedule_change(run_dir, stored, config, shards.row_shape)
        changed = []
    different = [f"{key} {stored.get(key)} there, {current.get(key)} here" for key in changed]
    data = stored_record(run_dir).get("data")
    if data is not None and data["root_hash"] != shards.root_hash:
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
        raise UserError(f"{path} is damaged: give the run's training command again, which makes the file anew")
    return content


def read_run_record(run_dir: Path) -> RunRecord:
    """``run.json``: lineage id, attempts so far, and what the shards were (``data``).

    Raises:
        UserError: the folder holds no run, or its record is damaged.
    """
    path = run_dir / "run.json"
    content = _read(path)
    if content is None:
        raise UserError(f"{run_dir} is no run directory: it has no run.json")
    record = _parse_record(content)
    if record is None:
        raise UserError(f"{path} is damaged: give the run's training command again, which makes the file anew")
    return cast(RunRecord, record)


def stored_record(run_dir: Path) -> dict[str, Any]:
    """What ``run.json`` holds. Where it is missing, empty or torn: what the newest checkpoint and start say of the run.

    That is its lineage, an attempt, the order of the rows, the masked positions of evaluations, the root hash of the
    data and the parent, as far as it is known. Empty before the first start.

    Raises:
        UserError: the file is there and cannot be read.
    """
    content = _read(run_dir / "run.json")
    record = None if content is None else _parse_record(content)
    if record is not None:
        return record
    state, claim = _newest_trainer_state(run_dir), _newest_claim(run_dir)
    found = {key: claim[key] for key in ("lineage_id", "order_version", "eval_masked_per_row") if key in claim}
    if state:
        found |= {"lineage_id": state["lineage_id"], "attempt": state["attempt"]}
        found["data"] = {"root_hash": state["data_root_hash"]}
        found |= {key: state[key] for key in ("parent", "fixed_end") if state.get(key)}
    return found


def restore_run_files(config: RunConfig, shards: Mixture) -> None:
    """Write what describes a finished run anew, as far as it is damaged: no start will do it. Rank 0 only."""
    run_dir = Path(config.run_dir)
    try:
        read_run_record(run_dir)
        read_run_config(run_dir)
    except UserError:
        record = {"arithmetic": [], **stored_record(run_dir), "data": data_facts(shards)}
        write_atomically(run_dir / "run.json", json.dumps(record, indent=1) + "\n", durable=True)
        write_configuration(config, shards)


def write_configuration(config: RunConfig, shards: Mixture) -> None:
    """Write ``config.yaml`` and ``tokenizer.json``: an export needs both, and the shards may be gone by then.

    Raises:
        OSError: they cannot be written.
    """
    write_config_yaml(config)
    write_atomically(Path(config.run_dir) / "tokenizer.json", shards.tokenizer_path.read_bytes(), durable=True)


def write_config_yaml(config: RunConfig) -> None:
    """Write ``config.yaml``.

    Raises:
        OSError: it cannot be written.
    """
    text = yaml.safe_dump(redact(config_as_dict(config)), sort_keys=False)
    write_atomically(Path(config.run_dir) / "config.yaml", text, durable=True)


def data_facts(shards: Mixture) -> DataFacts:
    """What a run records of its shards."""
    path, *others = shards.locations
    of_mixture: MixtureFacts = {}
    if others:
        of_mixture = {"weights": list(shards.shares), "root_hashes": [folder.root_hash for folder in shards.folders]}
    return {
        "root_hash": shards.root_hash,
        "path": [path, *others] if others else path,
        **of_mixture,
        "seq_length": shards.seq_length,
        "masked_per_row": shards.masked_per_row,
        "vocab_size": shards.vocab_size,
        "special_ids": shards.special_ids,
    }


def _stored_config(run_dir: Path) -> dict[str, Any]:
    """The configuration with dotted keys. A key that the run's version did not have is at its default: it did that."""
    try:
        content = read_run_config(run_dir)
    except UserError as error:
        content = _newest_trainer_state(run_dir).get("config")
        if not content:
            raise UserError(
                f"{run_dir / 'config.yaml'} is damaged or cannot be read, and no checkpoint says what was in it: give "
                "another --run_dir"
            ) from error
    return flatten(redact(config_as_dict(RunConfig()))) | flatten(content)


def _read(path: Path) -> bytes | None:
    try:
        return retried(path.read_bytes, f"read {path}")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(one_line(f"{path} cannot be read: {error}")) from error


def _parse_record(content: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError):
        record = json.loads(content)
        if isinstance(record, dict) and {"lineage_id", "attempt", "data", "arithmetic"} <= record.keys():
            return record
    return None


def _newest_claim(run_dir: Path) -> dict[str, Any]:
    """What the newest start that got so far has written of itself; empty where there is none."""
    numbers = [int(path.name) for path in run_dir.glob(f"{ATTEMPTS}/*") if path.name.isdigit()]
    for number in sorted(numbers, reverse=True):
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads((run_dir / ATTEMPTS / str(number)).read_bytes()))
    return {}


def _newest_trainer_state(run_dir: Path) -> dict[str, Any]:
    """``trainer.json`` of the newest checkpoint that has one; empty where there is none."""
    for path in sorted(run_dir.glob("checkpoints/step-*/trainer.json"), reverse=True):
        with contextlib.suppress(OSError, ValueError):
            state = json.loads(path.read_bytes())
            if isinstance(state, dict) and {"lineage_id", "attempt", "data_root_hash", "config"} <= state.keys():
                return state
    return {}
