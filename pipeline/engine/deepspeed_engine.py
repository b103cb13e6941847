"""RunConfig -> DeepSpeed engine."""

import contextlib
import dataclasses
import gc
import logging
import math
import os
import socket
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import cast

import torch
import torch.distributed as dist
from torch import nn

from data_prep.contract.command_line import UserError
from pipeline.config import RunConfig
from pipeline.data.row_schedule import RowSchedule
from pipeline.engine.bf16_products import ensure_bf16_products
from pipeline.engine.compilation import BACKENDS, compile_and_warm_up
from pipeline.engine.deepspeed_config import deepspeed_config
from pipeline.engine.muon import MOMENTS, moments_of_group
from pipeline.engine.optimizer import build_optimizer, clip_gradients
from pipeline.engine.protocol import Engine, FragmentMapping
from pipeline.engine.spikes import ask_before_update
from pipeline.model.arithmetic import RowShape
from pipeline.model.masked_lm import NarrowBertForPretraining
from pipeline.parallel.groups import (
    data_parallel_group,
    initialise_tensor_parallel,
    limit_collectives,
    model_parallel_unit,
)
from pipeline.parallel.quick_imports import leaving_uncompiled
from pipeline.processes.meeting import meet
from pipeline.processes.watchdog import collective_limit_s
from pipeline.processes.world import World

log = logging.getLogger("narrowbert")


def initialise_process_group(
    world: World, tensor_parallel_size: int = 1, hang_timeout_s: float = 1800.0
) -> torch.device:
    """Join the other processes (gloo on CPU, NCCL on CUDA), form the groups, return this process's device.

    Raises:
        UserError: more processes than GPUs on this machine, or rank 0's port is taken.
        StoppedError: this process was asked to stop while it waited for the others.
        LostConnectionError: not all of them have come.
    """
    if tensor_parallel_size > 1:
        # One hardware queue, so that a backward pass's sums start before the products issued after them (Megatron).
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    use_cuda = torch.cuda.is_available()
    index = _cuda_index(world) if use_cuda else world.local_rank
    device = torch.device("cuda", index) if use_cuda else torch.device("cpu")
    group_device = device if use_cuda else None  # named, so that a barrier need not guess the GPU
    if use_cuda:
        torch.cuda.set_device(device)
    os.environ["DS_ACCELERATOR"] = "cuda" if use_cuda else "cpu"
    # DeepSpeed reads these, and srun sets none of them.
    os.environ.update(RANK=str(world.rank), LOCAL_RANK=str(index), WORLD_SIZE=str(world.size))
    backend = "nccl" if use_cuda else "gloo"
    if world.size == 1:
        # DeepSpeed wants a group even for one process; this one needs no port.
        _set_rendezvous_of_one()
        dist.init_process_group(
            backend,
            store=dist.HashStore(),  # pyright: ignore[reportPrivateImportUsage]
            rank=0,
            world_size=1,
            device_id=group_device,
        )
    else:
        limit_s = collective_limit_s(hang_timeout_s)
        limit_collectives(limit_s)
        store = meet(world, limit_s)
        # Gloo then connects ranks when they first speak to each other. All to all, a group of 1,024 ranks would take
        # more than a thousand descriptors of every process.
        os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, device_id=group_device)
    initialise_tensor_parallel(tensor_parallel_size)
    return device


def _cuda_index(world: World) -> int:
    visible = torch.cuda.device_count()
    if visible == 1 and "SLURM_STEP_ID" in os.environ:
        return 0  # srun --gpus-per-task=1 shows every process its own GPU alone
    if world.local_rank >= visible:
        raise UserError(f"process {world.local_rank} of this machine has no GPU: start at most {visible} here")
    return world.local_rank


def _set_rendezvous_of_one() -> None:
    # DeepSpeed looks at these variables even when the group exists already.
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in os.environ:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            os.environ["MASTER_PORT"] = str(listener.getsockname()[1])


def build_engine(
    config: RunConfig,
    model: NarrowBertForPretraining,
    device: torch.device,
    shape: RowShape | None = None,
    eval_masked_per_row: int | None = None,
) -> Engine:
    """Wrap a model in a DeepSpeed engine.

    Args:
        config: of the run.
        model: fp32, its weights already in place.
        device: to compute on.
        shape: of the shards' rows, for which the model is compiled where that brings something; None: it is not
            compiled.
        eval_masked_per_row: masked positions of a row in evaluations; None: as many as the shards hold.

    Raises:
        UserError: the device cannot compute in the configured precision.
    """
    with _without_mlflow(), leaving_uncompiled():
        import deepspeed
        import deepspeed.ops
        import deepspeed.runtime.zero.muon.original_muon  # which the stages import at their first step, to ask its type
        from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    assert accelerator is not None
    if config.training.precision == "fp16" and not accelerator.is_fp16_supported():
        raise UserError("training.precision fp16 is not supported by this processor: take bf16 or fp32")
    if config.training.precision == "bf16":
        ensure_bf16_products(device)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # DeepSpeed calls collectives that torch has renamed; nothing a user can fix.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    # An inference-only shared-memory operator that would be compiled (25 s) and never used.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    model.to(device)
    if shape is not None:
        in_evaluation = dataclasses.replace(shape, masked_per_row=eval_masked_per_row or shape.masked_per_row)
        _compile(model, RowSchedule(config.training, shape).shapes(), in_evaluation, config, device)
    with _one_class_for_every_precision(deepspeed.DeepSpeedEngine):
        initialised = deepspeed.initialize(
            model=model,
            optimizer=build_optimizer(model, config),
            config=deepspeed_config(config, dist.get_world_size(data_parallel_group())),
            mpu=model_parallel_unit(),
            dist_init_required=False,
        )
    engine = cast(Engine, initialised[0])
    set_optimizer_state(engine, 0)  # there from the start: a run whose every step was skipped can be saved
    if config.training.precision == "fp16":
        # At the smallest scale keep skipping: training.max_skipped_steps says when to stop.
        engine.optimizer.loss_scaler.raise_error_at_min_scale = False
    return engine


def _compile(
    model: NarrowBertForPretraining,
    shapes: Sequence[RowShape],
    in_evaluation: RowShape,
    config: RunConfig,
    device: torch.device,
) -> None:
    """Compile, unless there are collectives inside of the forward pass: partitioned layers, ZeRO 3."""
    training = config.training
    if training.zero_stage < 3 and training.tensor_model_parallel_size == 1:
        compile_and_warm_up(model, shapes, in_evaluation, training, device)
    elif device.type in BACKENDS:
        log.info("the model is not compiled: that needs zero_stage below 3 and tensor_model_parallel_size 1")


@contextlib.contextmanager
def _one_class_for_every_precision(engine_class: type) -> Iterator[None]:
    """For bf16 weights with sums in fp32, DeepSpeed has ZeRO 1 in a class of its own (``BF16_Optimizer``).

    Its partitions, skipped steps and norms differ from those of all other precisions and stages. The class that
    serves them adds up in fp32 as well.
    """
    from deepspeed.runtime.zero.config import ZERO_OPTIMIZATION

    name = "_do_optimizer_sanity_check"
    original = getattr(engine_class, name)

    def choose(engine: Engine, basic_optimizer: torch.optim.Optimizer) -> str | None:
        return ZERO_OPTIMIZATION if engine.zero_optimization_stage() == 1 else original(engine, basic_optimizer)

    setattr(engine_class, name, choose)
    try:
        yield
    finally:
        setattr(engine_class, name, original)


@contextlib.contextmanager
def _without_mlflow() -> Iterator[None]:
    """DeepSpeed's autotuner, imported with it and not used here, wants MLflow if it is there: seconds in every rank."""
    modules = cast(dict[str, ModuleType | None], sys.modules)
    if "mlflow" in modules:
        yield
        return
    modules["mlflow"] = None  # an ImportError for whoever asks, which the autotuner expects
    try:
        yield
    finally:
        del modules["mlflow"]


def begin_step(engine: Engine, micro_batches: int) -> None:
    """Before the first micro-batch of a step: tell how many of them each rank has.

    DeepSpeed finds the last one of a step by counting from the start of the run, as if all steps had as many.
    """
    rows = micro_batches * engine.train_micro_batch_size_per_gpu() * dist.get_world_size(data_parallel_group())
    engine.set_train_batch_size(rows)
    engine.micro_steps = 0
    if engine.zero_optimization_stage() > 0:  # it keeps a number of its own, and looks there where sums are offloaded
        engine.optimizer.gradient_accumulation_steps = micro_batches


def update_weights(
    engine: Engine, clip_grad: float, refuses: Callable[[float], bool] | None = None
) -> torch.Tensor | float | None:
    """End a micro-batch; after the last of a step, update the weights.

    Args:
        engine: after the backward pass.
        clip_grad: norm above which gradients are scaled down; 0: never.
        refuses: asked with a finite gradient norm before the update, on every rank; after a yes it is skipped. It makes
            the host wait for the device.

    Returns:
        The gradient norm of all ranks before clipping (a number or a tensor on the device). It is not
        finite where the update was skipped. Undefined before the step's last micro-batch.
    """
    is_last = engine.is_gradient_accumulation_boundary()
    if engine.zero_optimization_stage() > 0:
        with ask_before_update(engine, refuses if is_last else None):
            engine.step()
        if is_last and engine.zero_optimization_stage() < 3 and engine.optimizer.overflow:
            _forget_gradients(engine)
        return engine.get_global_grad_norm()
    norm = None
    if is_last:
        norm = clip_gradients(engine.module.parameters(), clip_grad)
        if refuses is not None and refuses(float(norm)):
            norm = torch.full_like(norm, math.inf)
        # The fused AdamW reads this on the device, and leaves weights and state alone where it is 1.
        engine.optimizer.found_inf = (~norm.isfinite()).float()
    engine.step()
    return norm


def _forget_gradients(engine: Engine) -> None:
    """Drop what a skipped step has added up: DeepSpeed keeps it with offloading, and would add the next step to it."""
    for sums in (engine.optimizer.averaged_gradients, engine.optimizer.all_grad_tensors):
        sums.update(dict.fromkeys(sums))


def inner_optimizer(engine: Engine) -> torch.optim.AdamW:
    """The AdamW inside of DeepSpeed's wrapping."""
    if engine.zero_optimization_stage() > 0:
        return engine.optimizer.optimizer
    return cast(torch.optim.AdamW, engine.optimizer)


def set_optimizer_state(engine: Engine, steps: int) -> None:
    """Give the optimizer zero moments after ``steps`` updates, whatever it had before."""
    optimizer = inner_optimizer(engine)
    if engine.zero_optimization_stage() == 3:
        kept = [(partition, MOMENTS) for partition in engine.optimizer.fp32_partitioned_groups_flat]
    else:
        groups = optimizer.param_groups
        kept = [(tensor, moments_of_group(group)) for group in groups for tensor in group["params"]]
    optimizer.state.clear()
    for tensor, moments in kept:
        zeros = {moment: torch.zeros_like(tensor, requires_grad=False) for moment in moments}
        optimizer.state[tensor] = {"step": torch.tensor(float(steps), device=tensor.device)} | zeros
    link_optimizer_state(engine)


def link_optimizer_state(engine: Engine) -> None:
    """Let DeepSpeed find every parameter's moments in the flat partitions of ZeRO 1 and 2."""
    if engine.zero_optimization_stage() in (1, 2):
        # It links parameters to their state after the first group's first update, when the second
        # group has none yet; linked again here, both are found.
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def local_part(engine: Engine, parameter: nn.Parameter, kind: str) -> tuple[int, torch.Tensor] | None:
    """What this rank holds in fp32 of a parameter's weight or moment, without asking another rank.

    Args:
        engine: after ``link_optimizer_state``.
        parameter: of its module.
        kind: weights, exp_avg or exp_avg_sq.

    Returns:
        (start, part): elements of this tensor-parallel rank's shard, flattened, from ``start`` on; with ZeRO 0
        the whole shard. None if ZeRO has given this rank nothing of it.
    """
    from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

    stage, is_weight = engine.zero_optimization_stage(), kind == "weights"
    if stage == 0:
        return 0, (parameter.detach() if is_weight else engine.optimizer.state[parameter][kind]).view(-1)
    if stage == 3:
        part = safe_get_local_fp32_param(parameter) if is_weight else safe_get_local_optimizer_state(parameter, kind)
        start = dist.get_rank(data_parallel_group()) * part.numel()
        # The parts are equally long: the last ones may reach over the end.
        return start, part[: max(0, getattr(parameter, "ds_numel") - start)]  # noqa: B009 - DeepSpeed's
    mapping: FragmentMapping | None = getattr(parameter, "_hp_mapping")  # noqa: B009 - DeepSpeed's
    if mapping is None:
        return None
    return mapping.lp_fragment_address.start, mapping.get_hp_fragment(None if is_weight else kind)


_LOSS_SCALER_FIELDS = ("cur_scale", "cur_hysteresis", "cur_iter", "last_overflow_iter")


def loss_scaler_state(engine: Engine) -> dict[str, float] | None:
    """What fp16's dynamic loss scaling remembers; None in other precisions."""
    if not engine.fp16_enabled():
        return None
    return {name: getattr(engine.optimizer.loss_scaler, name) for name in _LOSS_SCALER_FIELDS}


def set_loss_scaler_state(engine: Engine, state: dict[str, float] | None) -> None:
    """Restore the loss scale of a checkpoint."""
    for name, value in (state or {}).items():
        setattr(engine.optimizer.loss_scaler, name, value)


def destroy_engine(engine: Engine) -> None:
    """End DeepSpeed and the process group in the order that never aborts."""
    engine.destroy()
    del engine
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()
