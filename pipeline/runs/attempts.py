"""The starts of a run: each claims a number, and only the newest may write.

``attempts/N`` is made by one start alone, however many begin at the same moment. ``run.json`` keeps the newest number
as well: it is what older versions go by.
"""

import contextlib
import dataclasses
import json
import os
import socket
import time
import uuid
from pathlib import Path
from typing import Any

from data_prep.contract.command_line import UserError
from data_prep.contract.files import create_once, flush_to_disk, write_atomically
from pipeline.config import RunConfig
from pipeline.data.mixture import Mixture
from pipeline.data.order import ORDER_VERSION
from pipeline.data.row_schedule import eval_masked_per_row
from pipeline.runs.ancestry import Parent
from pipeline.runs.directory import ATTEMPTS, data_facts, stored_record
from pipeline.runs.records import read_points

_SECONDS_TO_READ = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of a run."""

    lineage_id: str
    """The run, over all its starts."""
    number: int
    """Which start this is; the first is 1."""
    order_version: int
    """Of the order of the rows: the one that the run was started with."""
    eval_masked_per_row: int
    """Masked positions of a row in evaluations: as many as when the run was started."""
    parent: Parent | None
    """The checkpoint of another run that the run began at."""
    may_differ_until: dict[str, int]
    """Metric -> newest step recorded with other settings; up to that step a recomputed value may differ in rounding."""

    @property
    def first_row(self) -> int:
        """Place in the order of the rows at which the run began."""
        return self.parent["first_row"] if self.parent else 0

    @property
    def steps_before(self) -> int:
        """Steps of the runs before this one."""
        return self.parent["steps"] if self.parent else 0


def register_attempt(
    run_dir: Path, config: RunConfig, shards: Mixture, world_size: int, parent: Parent | None = None
) -> Attempt:
    """Record one more start of a run. Rank 0 only.

    Args:
        run_dir: of the run.
        config: of this start.
        shards: what it reads.
        world_size: processes.
        parent: what a run that has saved nothing yet begins at; one that has goes by its records.

    Raises:
        UserError: another start has begun at the same moment and comes after this one, nothing can be written, or a
            newer version of this program has begun the run.
    """
    # Other numbers here add the same terms in another order: equal within rounding, not to the bit.
    training = config.training
    arithmetic = [
        world_size, training.tensor_model_parallel_size, training.micro_batch_size, training.zero_stage,
    ]  # fmt: skip
    settings = {"arithmetic": arithmetic, "eval_rows": training.eval_rows}
    stored = stored_record(run_dir)
    order_version = stored.get("order_version", 1) if stored else ORDER_VERSION  # runs of the first order do not say so
    if order_version > ORDER_VERSION:
        raise UserError(
            f"{run_dir} was started by a newer version, with order {order_version} of the rows: resume it with that "
            "version"
        )
    # A run that began before evaluations had a rate of their own goes on as it did.
    masked = shards.masked_per_row if stored else eval_masked_per_row(training, shards.row_shape)
    pinned = {"order_version": order_version, "eval_masked_per_row": stored.get("eval_masked_per_row", masked)}
    number, lineage_id = _claim(run_dir, stored, pinned)
    record: dict[str, Any] = {**settings, **stored, "lineage_id": lineage_id, **pinned}
    if parent is not None:
        record["parent"] = parent
    changed = {name for name, value in settings.items() if stored and stored.get(name) != value}
    may_differ_until = dict(record.get("computed_otherwise", {}))  # the name on disk
    if changed:
        newest = max((point.step for point in read_points(run_dir)), default=0)
        may_differ_until["validation/loss"] = newest
        if "arithmetic" in changed:
            may_differ_until["train/loss"] = newest
    record |= {"attempt": number, "data": data_facts(shards), **settings}
    record["computed_otherwise"] = may_differ_until
    if not is_newest_attempt(run_dir, number):
        raise taken_over(run_dir, number)
    write_atomically(run_dir / "run.json", json.dumps(record, indent=1) + "\n", durable=True)
    return Attempt(
        lineage_id=lineage_id,
        number=number,
        parent=record.get("parent"),
        may_differ_until=may_differ_until,
        **pinned,
    )


def is_newest_attempt(run_dir: Path, number: int) -> bool:
    """Whether no later start of the run has been registered.

    A rank left behind on a lost node, or a second command given by mistake, must not write where the newest
    start does. Only a higher number that was read says so: files that cannot be read for a moment do not.
    """
    numbers: list[int] = []
    end = time.monotonic() + _SECONDS_TO_READ
    while not numbers:
        numbers = [*_claimed(run_dir), *_recorded(run_dir)]
        if time.monotonic() >= end:
            break
        if not numbers:
            time.sleep(0.1)
    return max(numbers, default=number) <= number


def taken_over(run_dir: Path, number: int) -> UserError:
    """What ends a start that is not the newest one."""
    return UserError(f"a newer start of this run has taken over: start {number} of {run_dir} ends")


def _claim(run_dir: Path, stored: dict[str, Any], pinned: dict[str, int]) -> tuple[int, str]:
    """A number that no other start has, and the run's lineage id, which is that of the first start.

    The claim keeps ``pinned``, which all starts of a run share.
    """
    lineage_id = stored.get("lineage_id")
    claims = run_dir / ATTEMPTS
    try:
        claims.mkdir(parents=True, exist_ok=True)
        flush_to_disk(run_dir)
        number = 1 + max([stored.get("attempt", 0), *_claimed(run_dir)])
        own_id = lineage_id or uuid.uuid4().hex
        content = {"lineage_id": own_id, **pinned, "host": socket.gethostname(), "pid": os.getpid()}
        while not create_once(claims / str(number), json.dumps(content) + "\n"):
            number += 1
    except OSError as error:
        raise UserError(f"{claims} cannot be written ({error.strerror}): fix that, then run the same again") from error
    if lineage_id is None:
        for earlier in range(1, number):
            lineage_id = lineage_id or _lineage_of_claim(claims / str(earlier))
    return number, lineage_id or own_id


def _lineage_of_claim(claim: Path) -> str | None:
    """What a start that is beginning just now has written; None where it was killed before it could."""
    end = time.monotonic() + _SECONDS_TO_READ
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError, KeyError):
            return json.loads(claim.read_text(encoding="utf-8"))["lineage_id"]
        time.sleep(0.02)
    return None


def _claimed(run_dir: Path) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(path.name) for path in (run_dir / ATTEMPTS).iterdir() if path.name.isdigit()]
    return []


def _recorded(run_dir: Path) -> list[int]:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return [int(json.loads((run_dir / "run.json").read_text(encoding="utf-8"))["attempt"])]
    return []
