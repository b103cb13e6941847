"""Whole tensors from what the tensor-parallel ranks hold."""

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch.testing._internal.distributed.fake_pg import FakeStore

from pipeline.parallel.groups import initialise_tensor_parallel, tensor_parallel_group
from pipeline.parallel.whole_tensors import is_partitioned, join_shards


def gather_shards(shard: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor:
    """The whole of a parameter, or of its gradient, on every tensor-parallel rank; all of them call this."""
    shards = [shard]
    if is_partitioned(parameter):
        group = tensor_parallel_group()
        assert isinstance(group, dist.ProcessGroup)
        shards = [torch.empty_like(shard, memory_format=torch.contiguous_format) for _ in range(group.size())]
        dist.all_gather(shards, shard.contiguous(), group=group)
    return join_shards(shards, parameter)


@contextlib.contextmanager
def as_tensor_parallel_rank(rank: int, size: int) -> Iterator[None]:
    """This process alone as one of ``size`` tensor-parallel ranks, for what exchanges nothing with the others."""
    if size == 1:
        yield
        return
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        initialise_tensor_parallel(size)
        yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
