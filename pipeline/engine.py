"""RunConfig -> DeepSpeed engine. The only DeepSpeed dictionary of the project is made here."""

import datetime
import gc
import logging
import os
import socket
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from data_prep.command_line import UserError
from pipeline.config import RunConfig
from pipeline.launch import World
from pipeline.optimizer import build_optimizer

_COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=30)


def initialise_process_group(world: World) -> torch.device:
    """Join the other processes (gloo on CPU, NCCL on CUDA) and return this process's device.

    Raises:
        UserError: more processes than GPUs on this machine.
    """
    use_cuda = torch.cuda.is_available()
    index = _cuda_index(world) if use_cuda else world.local_rank
    device = torch.device("cuda", index) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(device)
    else:
        os.environ["DS_ACCELERATOR"] = "cpu"
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
        )
    else:
        dist.init_process_group(backend, rank=world.rank, world_size=world.size, timeout=_COLLECTIVE_TIMEOUT)
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


def deepspeed_config(config: RunConfig, world_size: int) -> dict[str, Any]:
    """The engine's dictionary. DeepSpeed ignores unknown keys without a word, so none comes from a user."""
    training = config.training
    accumulation = training.global_batch_size // (training.micro_batch_size * world_size)
    return {
        "train_batch_size": training.global_batch_size,
        "train_micro_batch_size_per_gpu": training.micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.optimizer.clip_grad,
        "zero_optimization": {"stage": training.zero_stage, "overlap_comm": False},
        "bf16": {"enabled": training.precision == "bf16"},
        # torch's own AdamW: nothing to compile, the same on CPU and CUDA.
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }


def build_engine(config: RunConfig, model: nn.Module, world: World) -> Any:
    """Wrap ``model`` (fp32, on its device, weights already in place) in a DeepSpeed engine."""
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # DeepSpeed calls collectives that torch has renamed; nothing a user can mend.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    # An inference-only shared-memory operator that would be compiled (25 s) and never used.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=build_optimizer(model.named_parameters(), config.optimizer),
        config=deepspeed_config(config, world.size),
        dist_init_required=False,
    )
    return engine


def destroy_engine(engine: Any) -> None:
    """End DeepSpeed and the process group in the order that never aborts."""
    engine.destroy()
    del engine
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()
