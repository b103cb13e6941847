"""Topology-free checkpoints: per parameter its fp32 weight and Adam moments, by full name.

``RUN_DIR/checkpoints/step-00000100/`` holds

- ``weights-*``, ``exp_avg-*``, ``exp_avg_sq-*`` safetensors files, split among the ranks that wrote them;
- ``trainer.json``: step, rows consumed, lineage, attempt, data root hash, configuration;
- ``manifest.json``: size and sha256 of each file, written last.

It is written to a temporary folder, flushed to disk and renamed; ``checkpoints/latest`` names the
newest and is replaced atomically. Nothing is pickled, and nothing depends on the number of
processes, on how tensor parallelism split the parameters, or on the ZeRO stage. DeepSpeed's own
format is not used: it is pickled, and bound to the topology that wrote it.
"""

import dataclasses
import hashlib
import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from data_prep.command_line import UserError
from pipeline.config import ModelConfig
from pipeline.engine import inner_optimizer, link_optimizer_state, set_loss_scaler_state, set_optimizer_state
from pipeline.model.masked_lm import NarrowBertForPretraining
from pipeline.parallel import full_shape, gather_shards, shard_of

KINDS = ("weights", "exp_avg", "exp_avg_sq")
FORMAT_VERSION = 1


class CheckpointError(Exception):
    """A checkpoint that cannot be written, or is incomplete or damaged; the message names the file."""


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


# ----------------------------------------------------------------------------------------- write


def save_checkpoint(engine: Any, checkpoints: Path, state: TrainerState) -> Path:
    """Write one checkpoint together (every rank calls this) and return its folder.

    Raises:
        CheckpointError: on every rank, when any rank could not write (disk full, no permission).
            Earlier checkpoints are untouched.
    """
    final = checkpoints / f"step-{state.step:08d}"
    temporary = checkpoints / f".tmp-step-{state.step:08d}"
    mine = _gather_tensors(engine)
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        written = _write_tensors(temporary, mine)
        problem = ""
    except Exception as error:  # whatever went wrong, the other ranks are waiting below
        written, problem = {}, f"rank {dist.get_rank()}: {error}"
    reports: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(reports, (written, problem))
    problems = [text for _, text in reports if text]
    if not problems and dist.get_rank() == 0:
        try:
            _commit(temporary, final, {k: v for files, _ in reports for k, v in files.items()}, state)
        except OSError as error:
            problems = [f"rank 0: {error}"]
    outcome = [problems]
    dist.broadcast_object_list(outcome, src=0)
    if outcome[0]:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"cannot write the checkpoint {final}: {'; '.join(outcome[0])}")
    return final


def _gather_tensors(engine: Any) -> dict[str, dict[str, torch.Tensor]]:
    """Assemble every parameter from its fragments; keep, by kind, the ones this rank writes."""
    link_optimizer_state(engine)
    owner = _owners(engine.module, dist.get_world_size())
    mine: dict[str, dict[str, torch.Tensor]] = {kind: {} for kind in KINDS}
    for name, parameter in engine.module.named_parameters():
        for kind in KINDS:  # every rank takes part in gathering, whoever writes
            full = gather_shards(_read_fp32(engine, parameter, kind), parameter)
            if owner[name] == dist.get_rank():
                mine[kind][name] = full.detach().cpu().contiguous()
    return mine


def _read_fp32(engine: Any, parameter: nn.Parameter, kind: str) -> torch.Tensor:
    """This tensor-parallel rank's whole shard of a weight or moment, assembled from ZeRO's fragments."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if engine.zero_optimization_stage() == 0:
        return parameter.detach() if kind == "weights" else engine.optimizer.state[parameter][kind]
    is_weight = kind == "weights"
    value = safe_get_full_fp32_param(parameter) if is_weight else safe_get_full_optimizer_state(parameter, kind)
    assert value is not None
    return value


def _write_fp32(engine: Any, parameter: nn.Parameter, kind: str, shard: torch.Tensor) -> None:
    """The inverse of ``_read_fp32``."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    shard = shard.contiguous().to(parameter.device)
    if engine.zero_optimization_stage() == 0:
        _read_fp32(engine, parameter, kind).copy_(shard)
    elif kind == "weights":
        safe_set_full_fp32_param(parameter, shard)
    else:
        safe_set_full_optimizer_state(parameter, shard, kind)


def _owners(model: nn.Module, world_size: int) -> dict[str, int]:
    """Which rank writes which parameter: largest first, each to the rank with the least to write."""
    sizes = {name: math.prod(full_shape(parameter)) for name, parameter in model.named_parameters()}
    load = [0] * world_size
    owner: dict[str, int] = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        owner[name] = load.index(min(load))
        load[owner[name]] += sizes[name]
    return owner


def _write_tensors(folder: Path, tensors: dict[str, dict[str, torch.Tensor]]) -> dict[str, Any]:
    written = {}
    for kind, by_name in tensors.items():
        if not by_name:
            continue
        name = f"{kind}-{dist.get_rank():05d}-of-{dist.get_world_size():05d}.safetensors"
        save_file(by_name, folder / name)
        _flush(folder / name)
        written[name] = _fingerprint(folder / name)
    return written


def _commit(temporary: Path, final: Path, files: dict[str, Any], state: TrainerState) -> None:
    _write_json(temporary / "trainer.json", dataclasses.asdict(state))
    files["trainer.json"] = _fingerprint(temporary / "trainer.json")
    _write_json(temporary / "manifest.json", {"format_version": FORMAT_VERSION, "files": files})
    _flush(temporary)
    if final.exists():  # the same step, saved before a resume from an earlier checkpoint
        shutil.rmtree(final)
    temporary.rename(final)
    _flush(final.parent)
    replacement = final.parent / ".latest"
    replacement.write_text(final.name + "\n", encoding="utf-8")
    _flush(replacement)
    replacement.replace(final.parent / "latest")
    _flush(final.parent)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def remove_unfinished(checkpoints: Path) -> None:
    """Remove what a killed save left behind. Rank 0 only, before any save of this start."""
    for folder in checkpoints.glob(".tmp-step-*"):
        shutil.rmtree(folder)


# ------------------------------------------------------------------------------------------ read


def newest_checkpoint(checkpoints: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and a line for every newer one that does not."""
    problems = []
    for folder in sorted(checkpoints.glob("step-*"), reverse=True):
        try:
            verify_checkpoint(folder)
            return folder, problems
        except CheckpointError as error:
            problems.append(str(error))
    return None, problems


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
        if _fingerprint(path) != recorded:
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
            _write_fp32(engine, parameter, kind, shard_of(tensors[name], parameter))
    engine.global_steps = state.step


def optimizer_steps(engine: Any) -> int:
    """Updates that Adam has counted so far."""
    return int(next(iter(inner_optimizer(engine).state.values()))["step"])
