"""One process as a tensor-parallel rank."""

import contextlib
from collections.abc import Iterator

import torch.distributed as dist
from megatron.core import parallel_state
from torch.testing._internal.distributed.fake_pg import FakeStore

from pipeline.parallel.groups import initialise_tensor_parallel


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
