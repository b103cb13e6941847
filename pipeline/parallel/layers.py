"""The layers that come from Megatron-core: linear layers, the word embedding and the loss.

A tensor-parallel size of 1 needs no process group and no ``initialize_model_parallel``.

Processes number themselves so that the ranks of one tensor-parallel group are neighbours (on one
machine, where there are several): rank = data rank * tensor-parallel size + tensor rank.
"""

import functools
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import ModelParallelConfig
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding
from megatron.core.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region

from pipeline.parallel.groups import SingleRankGroup, tensor_parallel_group

Initializer = Callable[[torch.Tensor], torch.Tensor]


@functools.cache
def _megatron_config() -> ModelParallelConfig:
    # CPU initialisation slices one master weight: the same model at every tensor-parallel size.
    return ModelParallelConfig(use_cpu_initialization=True, gradient_accumulation_fusion=False)


class ColumnLinear(ColumnParallelLinear):
    """Linear layer whose output features are divided among the tensor-parallel group."""

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


class InterleavedColumnLinear(ColumnLinear):
    """Several layers of one input in one parameter, so that ZeRO 3 gathers them together.

    Output features are [blocks, layers, features]; tensor-parallel ranks divide the blocks among them.

    Args:
        input_size: of all layers.
        num_layers: how many they are.
        num_blocks: over all ranks.
        num_features: of a block of a layer.
        init_method: draws the weights.
        bias: whether they have one.
    """

    def __init__(
        self,
        input_size: int,
        num_layers: int,
        num_blocks: int,
        num_features: int,
        init_method: Initializer,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(input_size, num_blocks * num_layers * num_features, init_method, bias=bias)
        self._shape = (num_blocks // self._group.size(), num_layers, num_features)

    def forward(self, input_: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        """[..., input_size] -> of each layer [..., this rank's blocks * features]."""
        assert self.weight is not None
        input_ = copy_to_tensor_parallel(input_)
        # The weights are sorted by layer, not the outputs, which are many times as large.
        weights = self._by_layer(self.weight)
        biases = [None] * len(weights) if self.bias is None else self._by_layer(self.bias)
        return tuple(F.linear(input_, weight, bias) for weight, bias in zip(weights, biases, strict=True))

    def _by_layer(self, parameter: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return parameter.unflatten(0, self._shape).transpose(0, 1).flatten(1, 2).unbind(0)


class RowLinear(RowParallelLinear):
    """Linear layer whose input features are divided among the tensor-parallel group."""

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
    """Embedding whose tokens (the vocabulary) are divided among the tensor-parallel group.

    Args:
        vocab_size: tokens there are.
        hidden_size: H.
        init_method: draws the embeddings of those tokens, the same ones at every group size.
        padded_size: tokens to allocate; those above ``vocab_size`` are zero and never looked up.
    """

    def __init__(self, vocab_size: int, hidden_size: int, init_method: Initializer, padded_size: int) -> None:
        self._group = tensor_parallel_group()

        def initialise(weight: torch.Tensor) -> torch.Tensor:
            init_method(weight[:vocab_size])
            return weight[vocab_size:].zero_()

        super().__init__(
            padded_size,
            hidden_size,
            init_method=initialise,
            config=_megatron_config(),
            tp_group=self._group,  # type: ignore[arg-type]
        )
        self.weight.unpadded_size = vocab_size  # type: ignore[attr-defined]

    def forward(self, input_: torch.Tensor) -> torch.Tensor:
        """Token ids [...] -> [..., hidden_size]."""
        return F.embedding(input_, self.weight) if self._group.size() == 1 else super().forward(input_)


def vocab_parallel_bias(vocab_size: int, padded_size: int) -> torch.nn.Parameter:
    """This rank's share of one zero for every token."""
    bias = torch.nn.Parameter(torch.zeros(padded_size // tensor_parallel_group().size()))
    # By this DeepSpeed's gradient norm knows that every rank holds another part.
    set_tensor_model_parallel_attributes(bias, True, 0, 1)
    bias.unpadded_size = vocab_size  # type: ignore[attr-defined]
    return bias


def is_padding_of_vocabulary(vocab_size: int, padded_size: int) -> torch.Tensor | None:
    """Which of this rank's share of the vocabulary are no tokens: bool, [share]; None if all are."""
    if padded_size == vocab_size:
        return None
    group = tensor_parallel_group()
    share = padded_size // group.size()
    return torch.arange(share) + group.rank() * share >= vocab_size


def copy_to_tensor_parallel(replicated: torch.Tensor) -> torch.Tensor:
    """Before a product that is divided by output features: the ranks' gradients are added up on the way back."""
    group = tensor_parallel_group()
    return replicated if group.size() == 1 else copy_to_tensor_model_parallel_region(replicated, group=group)


class _GatherContext(torch.autograd.function.FunctionCtx):
    group: dist.ProcessGroup


class _GatherFeatures(torch.autograd.Function):
    # Core's own allocates on CUDA whatever its input's device.
    @staticmethod
    def forward(ctx: _GatherContext, part: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:  # type: ignore[override]
        ctx.group = group
        return _all_gather(part, group, -1)

    @staticmethod
    def backward(ctx: _GatherContext, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return gradient.chunk(ctx.group.size(), -1)[ctx.group.rank()], None


def _all_gather(part: torch.Tensor, group: dist.ProcessGroup, dimension: int) -> torch.Tensor:
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(group.size())]
    dist.all_gather(parts, part.contiguous(), group=group)
    return torch.cat(parts, dimension)


def gather_from_tensor_parallel(part: torch.Tensor) -> torch.Tensor:
    """[..., features / group size] of each rank -> [..., features] on every rank."""
    group = tensor_parallel_group()
    if group.size() == 1:
        return part
    gathered = _GatherFeatures.apply(part, group)
    assert isinstance(gathered, torch.Tensor)
    return gathered


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats of each position: fp32 [positions, V / group size], int64 [positions] -> [positions].

    May overwrite ``logits``.
    """
    if tensor_parallel_group().size() == 1:
        return F.cross_entropy(logits, labels, reduction="none")
    losses = vocab_parallel_cross_entropy(logits, labels)
    assert isinstance(losses, torch.Tensor)
    return losses


def argmax(logits: torch.Tensor) -> torch.Tensor:
    """The most probable token of each position: [positions, V / group size] -> [positions]."""
    group = tensor_parallel_group()
    if isinstance(group, SingleRankGroup) or group.size() == 1:
        return logits.argmax(-1)
    best, token = logits.max(-1)
    token += group.rank() * logits.shape[-1]
    overall = best.clone()
    dist.all_reduce(overall, op=dist.ReduceOp.MAX, group=group)
    # Of equal maxima the first counts.
    token[best < overall] = torch.iinfo(token.dtype).max
    dist.all_reduce(token, op=dist.ReduceOp.MIN, group=group)
    return token
