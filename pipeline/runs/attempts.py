"""The starts of a run: each registers a number, and only the newest may write."""

import dataclasses
import json
import uuid
from pathlib import Path
from typing import Any

from data_prep.contract.command_line import UserError
from data_prep.contract.files import write_atomically
from pipeline.config import RunConfig
from pipeline.data.mixture import Mixture
from pipeline.data.order import ORDER_VERSION
from pipeline.runs.directory import DataFacts, MixtureFacts, read_run_record
from pipeline.runs.records import read_points


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of a run."""

    lineage_id: str
    """The run, over all its starts."""
    number: int
    """Which start this is; the first is 1."""
    order_version: int
    """Of the order of the rows: the one that the run was started with."""
    may_differ_until: dict[str, int]
    """Metric -> newest step recorded with other settings; up to that step a recomputed value may differ in rounding."""


def register_attempt(run_dir: Path, config: RunConfig, shards: Mixture, world_size: int) -> Attempt:
    """Record one more start of a run. Rank 0 only."""
    # Other numbers here add the same terms in another order: equal within rounding, not to the bit.
    training = config.training
    arithmetic = [
        world_size, training.tensor_model_parallel_size, training.micro_batch_size, training.zero_stage,
    ]  # fmt: skip
    settings = {"arithmetic": arithmetic, "eval_rows": training.eval_rows}
    record: dict[str, Any] = {
        "lineage_id": uuid.uuid4().hex, "attempt": 0, "order_version": ORDER_VERSION, **settings
    }  # fmt: skip
    if (run_dir / "run.json").exists():
        record = {"order_version": 1, **read_run_record(run_dir)}  # runs of the first order do not say so
    if record["order_version"] > ORDER_VERSION:
        raise UserError(
            f"{run_dir} was started by a newer version, with order {record['order_version']} of the rows: resume it "
            "with that version"
        )
    changed = {name for name, value in settings.items() if record.get(name) != value}
    may_differ_until = dict(record.get("computed_otherwise", {}))  # the name on disk
    if changed:
        newest = max((point.step for point in read_points(run_dir)), default=0)
        may_differ_until["validation/loss"] = newest
        if "arithmetic" in changed:
            may_differ_until["train/loss"] = newest
    record |= {"attempt": record["attempt"] + 1, "data": data_facts(shards), **settings}
    record["computed_otherwise"] = may_differ_until
    write_atomically(run_dir / "run.json", json.dumps(record, indent=1) + "\n")
    return Attempt(
        lineage_id=record["lineage_id"],
        number=record["attempt"],
        order_version=record["order_version"],
        may_differ_until=may_differ_until,
    )


def is_newest_attempt(run_dir: Path, number: int) -> bool:
    """Whether no later start of the run has been registered.

    A rank left behind on a lost node, or a second command given by mistake, must not write where the newest
    start does.
    """
    return read_run_record(run_dir)["attempt"] == number


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
