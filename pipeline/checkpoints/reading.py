"""Finding, verifying and reading checkpoints."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from data_prep.contract.command_line import UserError
from pipeline.checkpoints.format import (
    FORMAT_VERSION,
    CheckpointError,
    TrainerState,
    manifest_text,
    size_and_hash,
    step_of,
)
from pipeline.config import ModelConfig
from pipeline.model.masked_lm import NarrowBertForPretraining
from pipeline.parallel.whole_tensors import full_shape, shard_of
from pipeline.runs.ancestry import Averaged

Fit = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
"""Full tensors of a checkpoint by parameter name -> those of the model that reads them."""


def newest_checkpoint(checkpoints: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and a line for every newer one that does not."""
    problems = []
    for folder in checkpoint_folders(checkpoints):
        try:
            verify_checkpoint(folder)
            return folder, problems
        except CheckpointError as error:
            problems.append(str(error))
    return None, problems


def checkpoint_folders(checkpoints: Path) -> list[Path]:
    """A run's checkpoints, the newest first."""
    found = [folder for folder in checkpoints.glob("step-*") if step_of(folder) is not None]
    return sorted(found, key=lambda folder: (step_of(folder), folder.name), reverse=True)


def verify_checkpoint(folder: Path, part: int = 0, parts: int = 1, *, read: bool = True) -> None:
    """Check every file of a checkpoint against its manifest.

    Args:
        folder: of the checkpoint.
        part: which share of the files to read, so that many processes check a checkpoint together.
        parts: how many shares there are.
        read: whether to read files at all; otherwise their sizes alone are compared.

    Raises:
        CheckpointError: naming the first file that is missing, cut or changed.
    """
    try:
        text = (folder / "manifest.json").read_text(encoding="utf-8")
        manifest = json.loads(text)
        version, files = manifest["format_version"], dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / 'manifest.json'} is missing or damaged ({error})") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{folder} has checkpoint format {version}, this version reads {FORMAT_VERSION}")
    if text != manifest_text(files):
        raise CheckpointError(f"{folder / 'manifest.json'} is damaged: it does not match the hash that it holds")
    for number, (name, recorded) in enumerate(sorted(files.items())):
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise CheckpointError(f"{path} is missing")
        if path.stat().st_size != recorded["size"]:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes instead of {recorded['size']}")
        if read and number % parts == part and size_and_hash(path) != recorded:
            raise CheckpointError(f"{path} does not match its sha256: it was changed after it was written")


def manifest_hash(folder: Path) -> str:
    """The hash that a checkpoint's manifest holds of itself; empty where it cannot be read."""
    try:
        return str(json.loads((folder / "manifest.json").read_bytes())["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def read_trainer_state(folder: Path) -> TrainerState:
    """Read ``trainer.json`` of a verified checkpoint."""
    return TrainerState(**json.loads((folder / "trainer.json").read_text(encoding="utf-8")))


def describe_checkpoint(folder: Path) -> Averaged:
    """What is recorded of a verified checkpoint where its weights are taken."""
    run_dir, state = folder.parent.parent.resolve(), read_trainer_state(folder)
    return {
        "lineage_id": state.lineage_id,
        "run": run_dir.name,
        "path": str(run_dir),
        "step": state.step,
        "sha256": manifest_hash(folder),
    }


def read_tensors(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    """All tensors of one of ``KINDS`` by full parameter name (fp32, memory-mapped, on CPU)."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob(f"{kind}-*-of-*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors handle is no dictionary
                tensors[name] = file.get_tensor(name)
    return tensors


def load_run_model(run_dir: Path, step: int | None = None) -> tuple[NarrowBertForPretraining, TrainerState]:
    """The model of a run's newest intact checkpoint, or of that of a step, in fp32 on CPU, and the checkpoint's state.

    Raises:
        UserError: there is no intact checkpoint, or none of that step.
    """
    folder = _newest_of(run_dir) if step is None else _of_step(run_dir, step)
    state = read_trainer_state(folder)
    model = NarrowBertForPretraining(ModelConfig(**state.config["model"]), state.vocab_size)
    load_weights(model, folder)
    return model.eval(), state


def _newest_of(run_dir: Path) -> Path:
    folder, problems = newest_checkpoint(run_dir / "checkpoints")
    if folder is None:
        raise UserError(f"{run_dir} has no intact checkpoint: {'; '.join(problems) or 'nothing is saved there yet'}")
    for problem in problems:
        sys.stderr.write(f"checkpoint passed over: {problem}\n")
    return folder


def _of_step(run_dir: Path, step: int) -> Path:
    found = {step_of(folder): folder for folder in checkpoint_folders(run_dir / "checkpoints")}
    if step not in found:
        there = ", ".join(f"{one}" for one in sorted(one for one in found if one is not None)) or "none"
        raise UserError(f"{run_dir} has no checkpoint of step {step:,}: those there are of steps {there}")
    try:
        verify_checkpoint(found[step])
    except CheckpointError as error:
        raise UserError(str(error)) from error
    return found[step]


def load_weights(model: nn.Module, folder: Path, fit: Fit = dict) -> None:
    """Put a checkpoint's weights into the bare model. Call before DeepSpeed wraps it.

    Args:
        model: of this project.
        folder: of the checkpoint.
        fit: makes this model's tensors of the checkpoint's; by default they are the same.

    Raises:
        CheckpointError: parameters are missing, unexpected or of another shape.
    """
    tensors = fit(read_tensors(folder, "weights"))
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
