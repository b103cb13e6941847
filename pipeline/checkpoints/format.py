"""Topology-free checkpoints: per parameter its fp32 weight and Adam moments, by full name.

``RUN_DIR/checkpoints/step-00000100/`` holds

- ``weights-*``, ``exp_avg-*``, ``exp_avg_sq-*`` safetensors files, split among the ranks that wrote them;
- ``trainer.json``: step, rows consumed, lineage, attempt, data root hash, configuration;
- ``manifest.json``: size and sha256 of each file and of itself, written last.

It is written to a temporary folder, flushed to disk and renamed (see ``writing`` and ``commit``).
``checkpoints/latest`` names the newest and is replaced atomically. Nothing is pickled, and nothing
depends on the number of processes, on how tensor parallelism divides the parameters, or on the ZeRO
stage. DeepSpeed's own format is not used: it is pickled, and bound to the topology that wrote it.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from pipeline.runs.ancestry import Parent
from pipeline.runs.time_budget import FixedEnd

KINDS = ("weights", "exp_avg", "exp_avg_sq")
FORMAT_VERSION = 1
TEMPORARY = ".tmp-"
"""How names of what is not committed, or not there any more, begin."""


class SizeAndHash(TypedDict):
    """What a manifest says of a file."""

    size: int
    """Bytes."""
    sha256: str
    """In hexadecimal."""


class CheckpointError(Exception):
    """A checkpoint that is incomplete or damaged, or does not fit; the message names the file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainerState:
    """What a resume needs besides tensors."""

    step: int
    """Optimizer steps done."""
    rows_consumed: int
    """Rows of the stream used: the position of the data."""
    optimizer_steps: int
    """Updates that Adam has counted (skipped steps do not count)."""
    skipped_steps: int
    """Steps whose gradients were not finite, or that were spikes."""
    lineage_id: str
    """The run, over all its restarts."""
    attempt: int
    """Which start of the run wrote this; the first is 1."""
    data_root_hash: str
    """Root hash of the shards."""
    vocab_size: int
    """Rows of the word embedding."""
    config: dict[str, Any]
    """The resolved configuration."""
    loss_scaler: dict[str, float] | None = None
    """State of fp16's dynamic loss scaling."""
    spikes: dict[str, Any] | None = None
    """What steps are compared with where spikes are skipped; see ``pipeline.engine.spikes``."""
    parent: Parent | None = None
    """The checkpoint of another run that the run began at."""
    training_seconds: float = 0.0
    """That the run has taken so far, over all its starts."""
    fixed_end: FixedEnd | None = None
    """How its time budget has ended its stable phase."""

    @property
    def rows_trained(self) -> int:
        """Rows that this run has trained on."""
        return self.rows_consumed - (self.parent["first_row"] if self.parent else 0)


def remove_unfinished(checkpoints: Path) -> None:
    """Remove what a killed save left behind. Rank 0 only, before any save of this start.

    A rank of an earlier start that is still writing there finds its folder gone.
    """
    for path in checkpoints.glob(f"{TEMPORARY}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def manifest_text(files: Mapping[str, SizeAndHash]) -> str:
    """``manifest.json`` for files of these sizes and hashes, to the byte; it holds a hash of itself."""
    content: dict[str, Any] = {"files": dict(files), "format_version": FORMAT_VERSION}
    content["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return as_json(content)


def as_json(content: Mapping[str, Any]) -> str:
    """The text of a checkpoint's JSON file."""
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def size_and_hash(path: Path) -> SizeAndHash:
    """Size and sha256 of a file."""
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def step_of(folder: Path) -> int | None:
    """The step of a checkpoint folder's name; None for anything else."""
    digits = folder.name.removeprefix("step-")
    return int(digits) if folder.name.startswith("step-") and digits.isdigit() and folder.is_dir() else None
