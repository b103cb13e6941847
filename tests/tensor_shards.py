"""Whole tensors from what the tensor-parallel ranks hold."""

import torch
import torch.distributed as dist

from pipeline.parallel.groups import tensor_parallel_group
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
