"""Everything that comes from Megatron-core, and the random seeds of each rank.

The model is built from Megatron's tensor-parallel parts. A tensor-parallel size of 1 needs no
process group and no ``initialize_model_parallel``.
"""

import functools
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # core tells at import which optional CUDA packages are missing
    from megatron.core import ModelParallelConfig, parallel_state
    from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding

Initializer = Callable[[torch.Tensor], torch.Tensor]


class SingleRankGroup:
    """Stands for the tensor-parallel process group where there is none: its size is 1."""

    def size(self) -> int:
        return 1

    def rank(self) -> int:
        return 0


def tensor_parallel_group() -> torch.distributed.ProcessGroup | SingleRankGroup:
    """Megatron's tensor-parallel group once ``initialize_model_parallel`` was called, else a group of one."""
    if parallel_state.model_parallel_is_initialized():
        group = parallel_state.get_tensor_model_parallel_group()
        assert isinstance(group, torch.distributed.ProcessGroup)
        return group
    return SingleRankGroup()


@functools.cache
def _megatron_config() -> ModelParallelConfig:
    # CPU initialisation slices one master weight: the same model at every tensor-parallel size.
    return ModelParallelConfig(use_cpu_initialization=True, gradient_accumulation_fusion=False)


class ColumnLinear(ColumnParallelLinear):
    """Linear layer whose output features are split over the tensor-parallel group."""

    # Core adds an empty ``_extra_state`` to every state dict; a checkpoint holds tensors only.
    get_extra_state = torch.nn.Module.get_extra_state

    def __init__(self, input_size: int, output_size: int, init_method: Initializer, *, bias: bool = True) -> None:
        self._group = tensor_parallel_group()
        super().__init__(
            input_size,
            output_size,
            config=_megatron_config(),
            init_method=init_method,
            bias=bias,
            tp_group=self._group,  # type: ignore[arg-type]
        )

    def forward(self, input_: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """[..., input_size] -> [..., output_size / group size]."""
        return _local_linear(self, input_) if self._group.size() == 1 else super().forward(input_)[0]


class RowLinear(RowParallelLinear):
    """Linear layer whose input features are split over the tensor-parallel group."""

    get_extra_state = torch.nn.Module.get_extra_state

    def __init__(self, input_size: int, output_size: int, init_method: Initializer, *, bias: bool = True) -> None:
        self._group = tensor_parallel_group()
        super().__init__(
            input_size,
            output_size,
            config=_megatron_config(),
            init_method=init_method,
            bias=bias,
            input_is_parallel=True,
            skip_bias_add=False,
            tp_group=self._group,  # type: ignore[arg-type]
        )

    def forward(self, input_: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """[..., input_size / group size] -> [..., output_size]."""
        return _local_linear(self, input_) if self._group.size() == 1 else super().forward(input_)[0]


def _local_linear(layer: ColumnLinear | RowLinear, input_: torch.Tensor) -> torch.Tensor:
    # Core's forward wants a process group even where there is nobody to talk to, and adds the bias
    # in a second pass over the output.
    assert layer.weight is not None
    return F.linear(input_, layer.weight, layer.bias)


class WordEmbedding(VocabParallelEmbedding):
    """Embedding whose rows (the vocabulary) are split over the tensor-parallel group."""

    def __init__(self, vocab_size: int, hidden_size: int, init_method: Initializer) -> None:
        self._group = tensor_parallel_group()
        super().__init__(
            vocab_size,
            hidden_size,
            init_method=init_method,
            config=_megatron_config(),
            tp_group=self._group,  # type: ignore[arg-type]
        )

    def forward(self, input_: torch.Tensor) -> torch.Tensor:
        """Token ids [...] -> [..., hidden_size]."""
        return F.embedding(input_, self.weight) if self._group.size() == 1 else super().forward(input_)


def seed_dropout(seed: int, step: int, data_rank: int) -> None:
    """Seed torch from (seed, step, data rank), so that no generator state needs keeping.

    A run that resumes at a step draws the same dropout masks as the run that was never stopped.
    """
    # One 64-bit mix (SplitMix64's finaliser; Steele, Lea and Flood, OOPSLA 2014) keeps the seeds
    # of neighbouring steps and ranks far apart.
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + data_rank * 0x94D049BB133111EB) % 2**64
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) % 2**64
    torch.manual_seed((mixed ^ (mixed >> 31)) % 2**63)
