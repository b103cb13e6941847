"""The optimizer's state of a checkpoint into an engine."""

from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.checkpoints.format import KINDS, CheckpointError, TrainerState
from pipeline.checkpoints.reading import Fit, read_tensors
from pipeline.engine.deepspeed_engine import inner_optimizer, local_part, set_loss_scaler_state, set_optimizer_state
from pipeline.engine.muon import kinds_of
from pipeline.engine.protocol import Engine
from pipeline.parallel.whole_tensors import shard_of


@torch.no_grad()
def load_optimizer(
    engine: Engine, folder: Path, state: TrainerState, *, kinds: Sequence[str] = KINDS, fit: Fit = dict
) -> None:
    """Put a checkpoint's fp32 master weights and Adam moments into a fresh engine.

    Each rank reads what ZeRO has given it: the files are mapped, and no other part of them is touched.

    Args:
        engine: just built.
        folder: of the checkpoint.
        state: what the engine goes on from.
        kinds: of ``KINDS``, what to load.
        fit: as in ``load_weights``; the same for moments, which are laid out as their weights.

    Raises:
        CheckpointError: moments that this optimizer needs are not there.
    """
    set_optimizer_state(engine, state.optimizer_steps)
    set_loss_scaler_state(engine, state.loss_scaler)
    for kind in kinds:
        tensors = fit(read_tensors(folder, kind))
        for name, parameter in engine.module.named_parameters():
            held = local_part(engine, parameter, kind) if kind in kinds_of(parameter) else None
            if held is not None:
                if name not in tensors:
                    raise CheckpointError(f"{folder} has no {kind} of {name}: another optimizer.type wrote it")
                start, part = held
                part.copy_(shard_of(tensors[name], parameter).reshape(-1)[start : start + part.numel()])
    engine.global_steps = state.step


def optimizer_steps(engine: Engine) -> int:
    """Updates that Adam has counted so far."""
    return int(next(iter(inner_optimizer(engine).state.values()))["step"])
