"""Topology-free checkpoints: per parameter its fp32 weight and Adam moments, by full name.

``RUN_DIR/checkpoints/step-00000100/`` holds

- ``weights-*``, ``exp_avg-*``, ``exp_avg_sq-*`` safetensors files, split among the ranks that wrote them;
- ``trainer.json``: step, rows consumed, lineage, attempt, data root hash, configuration;
- ``manifest.json``: size and sha256 of each file, written last.

It is written to a temporary folder, flushed to disk and renamed (checkpoint_writer.py);
``checkpoints/latest`` names the newest and is replaced atomically. Nothing is pickled, and nothing
depends on the number of processes, on how tensor parallelism split the parameters, or on the ZeRO
stage. DeepSpeed's own format is not used: it is pickled, and bound to the topology that wrote it.
"""

import dataclasses
import datetime
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from data_prep.command_line import UserError
from pipeline.config import ModelConfig
from pipeline.engine import held_part, inner_optimizer, set_loss_scaler_state, set_optimizer_state
from pipeline.model.masked_lm import NarrowBertForPretraining
from pipeline.parallel import full_shape, shard_of
from pipeline.run_directory import read_run_record

KINDS = ("weights", "exp_avg", "exp_avg_sq")
FORMAT_VERSION = 1
TEMPORARY = ".tmp-"
"""How names of what is not committed, or not there any more, begin."""


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
    """Steps whose gradients were not finite."""
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


def remove_unfinished(checkpoints: Path) -> None:
    """Remove what a killed save left behind. Rank 0 only, before any save of this start.

    A rank of an earlier start that is still writing there finds its folder gone.
    """
    for path in checkpoints.glob(f"{TEMPORARY}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def fingerprint(path: Path) -> dict[str, Any]:
    """Size and sha256 of a file."""
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def step_of(folder: Path) -> int | None:
    """The step of a checkpoint folder's name; None for anything else."""
    digits = folder.name.removeprefix("step-")
    return int(digits) if folder.name.startswith("step-") and digits.isdigit() and folder.is_dir() else None


# ------------------------------------------------------------------------------------------ read


def newest_checkpoint(checkpoints: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and a line for every newer one that does not."""
    problems = []
    for folder in _folders(checkpoints):
        try:
            verify_checkpoint(folder)
            return folder, problems
        except CheckpointError as error:
            problems.append(str(error))
    return None, problems


def _folders(checkpoints: Path) -> list[Path]:
    """A run's checkpoints, the newest first."""
    found = [folder for folder in checkpoints.glob("step-*") if step_of(folder) is not None]
    return sorted(found, key=lambda folder: (step_of(folder), folder.name), reverse=True)


def verify_checkpoint(folder: Path) -> None:
    """Check every file of a checkpoint against its manifest.

    Raises:
        CheckpointError: naming the first file that is missing, cut or changed.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        version, files = manifest["format_version"], dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / 'manifest.json'} is missing or damaged ({error})") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{folder} has checkpoint format {version}, this version reads {FORMAT_VERSION}")
    for name, recorded in files.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise CheckpointError(f"{path} is missing")
        if path.stat().st_size != recorded["size"]:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes instead of {recorded['size']}")
        if fingerprint(path) != recorded:
            raise CheckpointError(f"{path} does not match its sha256: it was changed after it was written")


def read_trainer_state(folder: Path) -> TrainerState:
    """Read ``trainer.json`` of a verified checkpoint."""
    return TrainerState(**json.loads((folder / "trainer.json").read_text(encoding="utf-8")))


def read_tensors(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    """All tensors of one of ``KINDS`` by full parameter name (fp32, memory-mapped, on CPU)."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob(f"{kind}-*-of-*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors handle is no dictionary
                tensors[name] = file.get_tensor(name)
    return tensors


def load_run_model(run_dir: Path) -> tuple[NarrowBertForPretraining, TrainerState]:
    """The model of a run's newest intact checkpoint, in fp32 on CPU, and that checkpoint's state.

    Raises:
        UserError: there is no intact checkpoint.
    """
    folder, problems = newest_checkpoint(run_dir / "checkpoints")
    if folder is None:
        raise UserError(f"{run_dir} has no intact checkpoint: {'; '.join(problems) or 'nothing is saved there yet'}")
    for problem in problems:
        print(f"checkpoint passed over: {problem}", file=sys.stderr)
    state = read_trainer_state(folder)
    model = NarrowBertForPretraining(ModelConfig(**state.config["model"]), state.vocab_size)
    load_weights(model, folder)
    return model.eval(), state


def load_weights(model: nn.Module, folder: Path) -> None:
    """Put a checkpoint's weights into the bare model. Call before DeepSpeed wraps it.

    Raises:
        CheckpointError: parameters are missing, unexpected or of another shape.
    """
    tensors = read_tensors(folder, "weights")
    wanted = {name: full_shape(p) for name, p in model.named_parameters()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if wanted != found:
        wrong = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
        raise CheckpointError(
            f"{folder} does not fit this model: {len(wrong)} parameters are missing, unexpected or of another "
            f"shape, such as {wrong[0]} ({found.get(wrong[0])} there, {wanted.get(wrong[0])} here)"
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(shard_of(tensors[name], parameter))


def load_optimizer(engine: Any, folder: Path, state: TrainerState) -> None:
    """Put a checkpoint's fp32 master weights and Adam moments into a fresh engine."""
    set_optimizer_state(engine, state.optimizer_steps)
    set_loss_scaler_state(engine, state.loss_scaler)
    for kind in KINDS:
        tensors = read_tensors(folder, kind)
        for name, parameter in engine.module.named_parameters():
            _set_fp32(engine, parameter, kind, shard_of(tensors[name], parameter))
    engine.global_steps = state.step


def _set_fp32(engine: Any, parameter: nn.Parameter, kind: str, shard: torch.Tensor) -> None:
    """Set a weight or moment from this tensor-parallel rank's whole shard of it."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    shard = shard.contiguous().to(parameter.device)
    if engine.zero_optimization_stage() == 0:
        whole = held_part(engine, parameter, kind)
        assert whole is not None
        whole[1].copy_(shard.view_as(whole[1]))
    elif kind == "weights":
        safe_set_full_fp32_param(parameter, shard)
    else:
        safe_set_full_optimizer_state(parameter, shard, kind)


def optimizer_steps(engine: Any) -> int:
    """Updates that Adam has counted so far."""
    return int(next(iter(inner_optimizer(engine).state.values()))["step"])


# ------------------------------------------------------------------------------------------ list


def list_checkpoints(run_dir: Path) -> str:
    """A table of a run's checkpoints, each verified, oldest first.

    Raises:
        UserError: no run or nothing saved; or, after printing the table, some are damaged.
    """
    read_run_record(run_dir)  # refuses what is no run
    folders = _folders(run_dir / "checkpoints")[::-1]
    if not folders:
        raise UserError(f"{run_dir} has no checkpoint yet")
    lines, damaged = [f"{'step':>9}  {'saved':<19}  {'bytes':>15}  {'start':>5}  state"], []
    for folder in folders:
        size = sum(path.stat().st_size for path in folder.iterdir())
        attempt, problem = "?", ""
        try:
            verify_checkpoint(folder)
            attempt = str(read_trainer_state(folder).attempt)
        except CheckpointError as error:
            problem = str(error)
            damaged.append(folder.name)
        when = datetime.datetime.fromtimestamp(folder.stat().st_mtime).strftime("%Y-%m-%d %H:%M:%S")
        state = f"DAMAGED: {problem}" if problem else "intact"
        lines.append(f"{step_of(folder):>9,}  {when}  {size:>15,}  {attempt:>5}  {state}")
    table = "\n".join(lines)
    if damaged:
        print(table)
        raise UserError(
            f"{len(damaged)} of {len(folders)} checkpoints of {run_dir} are damaged ({', '.join(damaged)}): a resume "
            "passes them over; restore or remove them"
        )
    return table
