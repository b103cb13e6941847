"""Predicted memory of one process, from the model's own code on tensors without storage.

Weights, gradients and optimizer states follow from the number of parameters. Activations depend on
what every operation keeps for the backward pass: a micro-batch is run forward and backward on torch's
``meta`` device, and the bytes that would be alive are counted. They are those of the CPU's kernels; a
GPU's fused attention keeps less.
"""

import dataclasses
import weakref
from collections.abc import Callable, Collection
from typing import TypeVar, cast

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.config import BUCKET_ELEMENTS, LIVE_ELEMENTS, RunConfig, adds_in_fp32
from pipeline.engine.compilation import DTYPES
from pipeline.layout import ATTENTIONS, group_sublayers, parse_layout, without_windows
from pipeline.model.arithmetic import RowShape
from pipeline.model.attention import plain_attention, takes_products
from pipeline.model.masked_lm import NarrowBertForPretraining
from pipeline.model.parameters import count_moments, count_parameters, output_dropout, padded_vocab_size, takes_blocks

Argument = torch.Tensor | torch.dtype | torch.device | float | bool | None
Result = TypeVar("Result")


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations under it make, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.finalize] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Result],
        types: Collection[type],
        args: tuple[Argument, ...] = (),
        kwargs: dict[str, Argument] | None = None,
    ) -> Result:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return result

    def ignore(self, tensor: torch.Tensor) -> None:
        """Leave out a tensor that was there before."""
        storage = tensor.untyped_storage()
        self._known[storage._cdata] = weakref.finalize(storage, self._known.pop, storage._cdata, None)

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self.now += size
        self.peak = max(self.peak, self.now)
        self._known[key] = weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.now -= size
        self._known.pop(key, None)


class _Attention(TorchFunctionMode):
    """Attention of tensors without storage as it is on a device: what the backward pass needs differs.

    A GPU's kernel keeps no scores. A CPU's keeps none without dropout.
    """

    def __init__(self, *, on_gpu: bool) -> None:
        super().__init__()
        self._on_gpu = on_gpu

    def __torch_function__(
        self,
        func: Callable[..., Result],
        types: Collection[type],
        args: tuple[Argument, ...] = (),
        kwargs: dict[str, Argument] | None = None,
    ) -> Result:
        kwargs = kwargs or {}
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        (query, key), plain = args[:2], cast(Callable[..., Result], plain_attention)
        assert isinstance(query, torch.Tensor)
        assert isinstance(key, torch.Tensor)
        if not self._on_gpu and takes_products(query, key):
            return plain(*args, kwargs["attn_mask"], kwargs["dropout_p"])
        if not self._on_gpu and kwargs["dropout_p"]:
            return func(*args, **kwargs)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args, attn_mask=kwargs["attn_mask"])[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one process at its peak."""

    weights: int
    """Weights in the configured precision."""
    gradients: int
    """Gradients in the configured precision, or in fp32 where those of several micro-batches are added up."""
    optimizer: int
    """fp32 master weights and Adam moments."""
    activations: int
    """What the forward pass keeps for the backward pass, and what both need for a moment."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.optimizer + self.activations


def predict_memory(config: RunConfig, shape: RowShape, world_size: int, *, on_gpu: bool = False) -> Memory:
    """Bytes that one of ``world_size`` processes needs for weights, gradients, optimizer states and activations."""
    weights, gradients, optimizer = state_bytes(config, shape, world_size, config.training.zero_stage)
    activations = activation_bytes(config, shape, on_gpu=on_gpu)
    return Memory(weights=weights, gradients=gradients, optimizer=optimizer, activations=activations)


def state_bytes(config: RunConfig, shape: RowShape, world_size: int, zero_stage: int) -> tuple[int, int, int]:
    """Bytes of weights, gradients and optimizer states at a ZeRO stage."""
    training = config.training
    size = training.tensor_model_parallel_size
    parameters = count_parameters(config.model, shape.vocab_size) // size
    data_size = world_size // size
    weights, gradients, optimizer = model_state_bytes(
        parameters,
        training.precision,
        zero_stage,
        data_size,
        moments=count_moments(config.model, config.optimizer, shape.vocab_size) // size,
        adds_in_fp32=adds_in_fp32(training, data_size),
    )
    if zero_stage == 3:
        # What is fetched stays until LIVE_ELEMENTS are there; the largest gradient exists whole, once as
        # computed and once in the buffer from which it is scattered.
        unit = DTYPES[training.precision].itemsize
        weights += unit * min(parameters, LIVE_ELEMENTS)
        gradients += 2 * unit * padded_vocab_size(shape.vocab_size, size) // size * config.model.hidden_size
    return weights, gradients, optimizer


def bucket_bytes(config: RunConfig, world_size: int) -> int:
    """Bytes of the buffers in which gradients are summed on a GPU: one is filled while the other is under way.

    ZeRO 1 fills them with sums in fp32, and sends a copy in the configured precision. On CPU nothing overlaps, and of
    one buffer only what is filled takes memory.
    """
    training = config.training
    unit = DTYPES[training.precision].itemsize
    if training.zero_stage == 1 and adds_in_fp32(training, world_size // training.tensor_model_parallel_size):
        return BUCKET_ELEMENTS * (2 * 4 + unit)
    return {0: 0, 1: 2, 2: 2, 3: 1}[training.zero_stage] * BUCKET_ELEMENTS * unit


def model_state_bytes(
    num_parameters: int,
    precision: str,
    zero_stage: int,
    data_parallel_size: int,
    *,
    moments: int,
    adds_in_fp32: bool = False,
) -> tuple[int, int, int]:
    """Bytes per rank of weights, gradients, and fp32 master weights with the optimizer's moments (no activations).

    Per parameter of AdamW: bf16 and fp16 2 + 2 + 12, or 2 + 4 + 12 with sums in fp32; fp32 4 + 4 + 12 (DeepSpeed keeps
    a master copy there as well; without ZeRO it does not: 4 + 4 + 8). Stage 1 divides the 12 among the ranks, 2 the
    gradients too, 3 the weights too (Rajbhandari et al., "ZeRO", SC 2020, section 3).

    Args:
        num_parameters: that a rank holds, after tensor parallelism.
        precision: of weights and gradients.
        zero_stage: 0 to 3.
        data_parallel_size: ranks among which ZeRO divides.
        moments: elements of them.
        adds_in_fp32: whether gradients of several micro-batches are added up in fp32.
    """
    unit = 4 if precision == "fp32" else 2
    gradient = 4 if adds_in_fp32 else unit
    weights, gradients, optimizer = unit * num_parameters, gradient * num_parameters, 4 * (num_parameters + moments)
    if zero_stage == 0:
        optimizer = 4 * moments
    if zero_stage >= 1:
        optimizer //= data_parallel_size
    if zero_stage >= 2:
        gradients //= data_parallel_size
    if zero_stage >= 3:
        weights //= data_parallel_size
    return weights, gradients, optimizer


def activation_bytes(config: RunConfig, shape: RowShape, *, on_gpu: bool = False) -> int:
    """Peak bytes of a micro-batch's forward and backward pass besides weights and gradients.

    Of tensor-parallel ranks each computes its share of the heads, inner width and vocabulary; what they
    hold whole is counted as the difference between a layer of full width and its parts.
    """
    size = config.training.tensor_model_parallel_size
    whole = _trace(_without_blocks(config) if on_gpu else config, shape, on_gpu=on_gpu)
    if size == 1:
        return whole
    replicated = _replicated_bytes(config, shape)
    return replicated + (whole - replicated) // size


def _replicated_bytes(config: RunConfig, shape: RowShape) -> int:
    """What every tensor-parallel rank keeps whole: dropout, sum and norm after each sublayer.

    With recomputation: the input of each layer, and all of that for the last one, with which the backward
    pass begins while nothing has been freed.
    """
    layout = parse_layout(config.model.layout)
    kept = {letter: 3 if output_dropout(config.model, letter) else 2 for letter in ATTENTIONS + "f"}
    width = config.model.hidden_size * DTYPES[config.training.precision].itemsize
    sides = ((layout.full, shape.seq_length), (layout.narrow, shape.masked_per_row))
    if config.model.recompute:
        groups = [(group, length) for letters, length in sides for group in group_sublayers(letters)]
        last, length = groups[-1]
        positions = sum(length for _, length in groups) + sum(kept[letter] for letter in last) * length
    else:
        positions = sum(kept[letter] * length for letters, length in sides for letter in letters)
    return config.training.micro_batch_size * (positions + kept["f"] * shape.seq_length) * width


def _without_blocks(config: RunConfig) -> RunConfig:
    """What keeps as much on a GPU, where FlexAttention keeps no mask, if there is no dropout that it does not know."""
    if not takes_blocks(config.model):
        return config
    model = dataclasses.replace(config.model, layout=without_windows(config.model.layout), document_attention="shared")
    return dataclasses.replace(config, model=model)


def _trace(config: RunConfig, shape: RowShape, *, on_gpu: bool) -> int:
    rows, dtype = config.training.micro_batch_size, DTYPES[config.training.precision]
    with torch.device("meta"):
        padded = padded_vocab_size(shape.vocab_size, 1)
        model = NarrowBertForPretraining(config.model, shape.vocab_size, padded).to(dtype)
        input_ids = torch.zeros(rows, shape.seq_length, dtype=torch.int64)
        positions = torch.zeros(rows, shape.masked_per_row, dtype=torch.int64)
        label_mask = torch.ones(rows, shape.masked_per_row, dtype=torch.bool)
        documents = torch.zeros_like(input_ids) if config.model.document_attention == "isolated" else None
    live = LiveBytes()
    for parameter in model.parameters():
        live.ignore(parameter)
        # A gradient moves on as soon as it is there; where to is not counted here.
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with live, _Attention(on_gpu=on_gpu):
        model(input_ids, positions, None, positions, label_mask, documents).loss_sum.backward()
    return live.peak
