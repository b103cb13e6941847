"""The process groups of tensor and data parallelism, and the adapter through which DeepSpeed sees them."""

import datetime
import math

import torch.distributed as dist
from megatron.core import parallel_state
from torch.distributed import distributed_c10d


class SingleRankGroup:
    """Stands for the tensor-parallel process group where there is none: its size is 1."""

    def size(self) -> int:
        """How many processes divide the layers among them: one."""
        return 1

    def rank(self) -> int:
        """This process in the group: the first."""
        return 0


def limit_collectives(seconds: float) -> None:
    """Let every group that this process makes from now on, whoever makes it, wait so long for its other ranks.

    DeepSpeed makes groups without saying how long, which would be torch's own 10 minutes (NCCL) or 30 (gloo).
    So it is these two that are set.
    """
    limit = datetime.timedelta(seconds=seconds)
    distributed_c10d.default_pg_timeout = limit
    distributed_c10d.default_pg_nccl_timeout = limit  # pyright: ignore[reportPrivateImportUsage]


def initialise_tensor_parallel(size: int) -> None:
    """Let each ``size`` neighbouring processes divide the layers among them. Every process calls this once."""
    if size > 1:
        limit = distributed_c10d.default_pg_timeout  # Megatron has a default of its own
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=size,
            create_gloo_process_groups=False,
            distributed_timeout_minutes=math.ceil(limit.total_seconds() / 60),
        )


def tensor_parallel_group() -> dist.ProcessGroup | SingleRankGroup:
    """Megatron's tensor-parallel group once ``initialize_model_parallel`` was called, else a group of one."""
    if parallel_state.model_parallel_is_initialized():
        group = parallel_state.get_tensor_model_parallel_group()
        assert isinstance(group, dist.ProcessGroup)
        return group
    return SingleRankGroup()


def data_parallel_group() -> dist.ProcessGroup | None:
    """The processes that hold the same part of the model and read other rows; None if those are all."""
    if not parallel_state.model_parallel_is_initialized():
        return None
    group = parallel_state.get_data_parallel_group()
    assert isinstance(group, dist.ProcessGroup)
    return group


class ModelParallelUnit:
    """Megatron's groups under the names by which DeepSpeed asks for them (its ``mpu`` argument).

    DeepSpeed's model-parallel group is the tensor-parallel one: there are no pipeline stages.
    """

    get_model_parallel_group = staticmethod(parallel_state.get_tensor_model_parallel_group)
    get_model_parallel_rank = staticmethod(parallel_state.get_tensor_model_parallel_rank)
    get_model_parallel_world_size = staticmethod(parallel_state.get_tensor_model_parallel_world_size)
    get_tensor_model_parallel_group = staticmethod(parallel_state.get_tensor_model_parallel_group)
    get_tensor_model_parallel_rank = staticmethod(parallel_state.get_tensor_model_parallel_rank)
    get_tensor_model_parallel_world_size = staticmethod(parallel_state.get_tensor_model_parallel_world_size)
    get_data_parallel_group = staticmethod(parallel_state.get_data_parallel_group)
    get_data_parallel_rank = staticmethod(parallel_state.get_data_parallel_rank)
    get_data_parallel_world_size = staticmethod(parallel_state.get_data_parallel_world_size)


def model_parallel_unit() -> ModelParallelUnit | None:
    """What DeepSpeed needs to know of the groups; None where every process holds the whole model."""
    return ModelParallelUnit() if parallel_state.model_parallel_is_initialized() else None
