"""The optimizer's state of a checkpoint into an engine."""

from pathlib import Path

import torch
from torch import nn

from pipeline.checkpoints.format import KINDS, TrainerState
from pipeline.checkpoints.reading import read_tensors
from pipeline.engine.deepspeed_engine import inner_optimizer, local_part, set_loss_scaler_state, set_optimizer_state
from pipeline.engine.protocol import Engine
from pipeline.parallel.whole_tensors import shard_of


def load_optimizer(engine: Engine, folder: Path, state: TrainerState) -> None:
    """Put a checkpoint's fp32 master weights and Adam moments into a fresh engine."""
    set_optimizer_state(engine, state.optimizer_steps)
    set_loss_scaler_state(engine, state.loss_scaler)
    for kind in KINDS:
        tensors = read_tensors(folder, kind)
        for name, parameter in engine.module.named_parameters():
            _set_fp32(engine, parameter, kind, shard_of(tensors[name], parameter))
    engine.global_steps = state.step


def _set_fp32(engine: Engine, parameter: nn.Parameter, kind: str, shard: torch.Tensor) -> None:
    """Set a weight or moment from this tensor-parallel rank's whole shard of it."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    shard = shard.contiguous().to(parameter.device)
    if engine.zero_optimization_stage() == 0:
        whole = local_part(engine, parameter, kind)
        assert whole is not None
        whole[1].copy_(shard.view_as(whole[1]))
    elif kind == "weights":
        safe_set_full_fp32_param(parameter, shard)
    else:
        safe_set_full_optimizer_state(parameter, shard, kind)


def optimizer_steps(engine: Engine) -> int:
    """Updates that Adam has counted so far."""
    return int(next(iter(inner_optimizer(engine).state.values()))["step"])
