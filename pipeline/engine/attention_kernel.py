"""Which kernel computes attention, found by watching what torch really calls.

Shape suffixes as in ``pipeline.model.attention``.
"""

import re
from collections.abc import Callable, Collection
from typing import TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.config import RunConfig
from pipeline.engine.compilation import DTYPES
from pipeline.model.arithmetic import RowShape
from pipeline.model.attention import dot_product_attention
from pipeline.model.attention_mask import attention_mask
from pipeline.model.parameters import takes_blocks
from pipeline.model.position import build_slopes

Result = TypeVar("Result")

_KERNELS = {
    "_scaled_dot_product_flash_attention": "FlashAttention",
    "_scaled_dot_product_efficient_attention": "the memory-efficient kernel",
    "_scaled_dot_product_cudnn_attention": "cuDNN",
    "_scaled_dot_product_flash_attention_for_cpu": "torch's fused CPU kernel",
}
_PRODUCTS = "two products, all scores in memory"


class _Operations(TorchDispatchMode):
    """Names of the operations under it that torch has dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Result],
        types: Collection[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> Result:
        self.names.append(re.sub(r"^aten\.|\.\w+$", "", str(func)))
        return func(*args, **(kwargs or {}))


def attention_kernel(config: RunConfig, shape: RowShape, device: torch.device, *, padded: bool) -> str:
    """The kernel of full attention in training, in words.

    Args:
        config: of the run.
        shape: of the rows.
        device: to compute on.
        padded: whether rows have padding.
    """
    model, dtype = config.model, DTYPES[config.training.precision]
    rows, length = 1, shape.seq_length  # how many there are makes no difference
    isolated = model.document_attention == "isolated"
    mask = attention_mask(
        torch.arange(length, device=device).lt(length - 1).expand(rows, 1, 1, -1) if padded else None,
        torch.zeros(rows, length, dtype=torch.int64, device=device) if isolated else None,
        build_slopes(model, device),
        torch.arange(length, device=device),
        length,
        dtype,
        use_blocks=device.type == "cuda" and takes_blocks(model),
    )
    if mask.block_mask is not None:
        return "FlexAttention, blocks between documents left out"
    local_heads = model.num_attention_heads // config.training.tensor_model_parallel_size
    q_BAQD = torch.zeros(rows, local_heads, length, model.head_dim, dtype=dtype, device=device, requires_grad=True)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), _Operations() as operations:
        dot_product_attention(q_BAQD, q_BAQD, q_BAQD, mask.bias, model.attention_dropout)
    return next((_KERNELS[name] for name in operations.names if name in _KERNELS), _PRODUCTS)
