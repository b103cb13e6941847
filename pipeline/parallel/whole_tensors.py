"""Whole parameters and the parts of them that tensor-parallel ranks hold."""

import torch
import torch.distributed as dist

from pipeline.parallel.groups import tensor_parallel_group


def is_partitioned(parameter: torch.nn.Parameter) -> bool:
    """Whether each tensor-parallel rank holds another part of the parameter."""
    return _partition_dim(parameter) is not None


def full_shape(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    """Shape of the parameter over all tensor-parallel ranks, without padding."""
    shape = _padded_shape(parameter)
    return (getattr(parameter, "unpadded_size", shape[0]), *shape[1:])


def shard_of(full: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor:
    """The part of ``full`` (shape ``full_shape``) that this rank's ``parameter`` holds, padded with zeros."""
    padding = _padded_shape(parameter)[0] - full.shape[0]
    if padding:
        full = torch.cat([full, full.new_zeros(padding, *full.shape[1:])])
    group, dim = tensor_parallel_group(), _partition_dim(parameter)
    return full if dim is None else full.chunk(group.size(), dim)[group.rank()]


def shard_shape(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    """Shape of what each tensor-parallel rank holds, padding included; under ZeRO, of what it would hold whole."""
    # ZeRO 3 leaves an empty tensor in a parameter's place and keeps its shape beside it.
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def join_shards(shards: list[torch.Tensor], parameter: torch.nn.Parameter) -> torch.Tensor:
    """The inverse of ``shard_of``: the shards of all tensor-parallel ranks (of one, where they are equal) -> whole."""
    dim = _partition_dim(parameter)
    whole = shards[0] if dim is None else torch.cat(shards, dim)
    return whole[: full_shape(parameter)[0]]


def gather_shards(shard: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor:
    """The whole of a parameter, or of its gradient, on every tensor-parallel rank; all of them call this."""
    shards = [shard]
    if is_partitioned(parameter):
        group = tensor_parallel_group()
        assert isinstance(group, dist.ProcessGroup)
        shards = [torch.empty_like(shard, memory_format=torch.contiguous_format) for _ in range(group.size())]
        dist.all_gather(shards, shard.contiguous(), group=group)
    return join_shards(shards, parameter)


def _padded_shape(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    shape = list(shard_shape(parameter))
    dim = _partition_dim(parameter)
    if dim is not None:
        shape[dim] *= tensor_parallel_group().size()
    return tuple(shape)


def _partition_dim(parameter: torch.nn.Parameter) -> int | None:
    """Along which dimension the tensor-parallel ranks divide the parameter; None if each holds it whole."""
    is_divided = tensor_parallel_group().size() > 1 and getattr(parameter, "tensor_model_parallel", False)
    return getattr(parameter, "partition_dim") if is_divided else None  # noqa: B009 - set by Megatron, unknown to torch
