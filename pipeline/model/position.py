"""Positions: rotary embeddings, ALiBi, and where a position starts again.

Shape suffixes: B rows of a batch, S tokens of a row, P narrow positions of a row, A attention heads of this
rank, D size of a head.
"""

import math

import torch

from pipeline.config import ModelConfig
from pipeline.parallel.groups import tensor_parallel_group


def positions_in_document(document_ids_BS: torch.Tensor) -> torch.Tensor:
    """Each token's place in its own document, from 0: int64 [B, S].

    A document of a packed row then has the positions that it has in a row of its own.
    """
    index_S = torch.arange(document_ids_BS.shape[1], device=document_ids_BS.device)
    begins_BS = torch.ones_like(document_ids_BS, dtype=torch.bool)
    begins_BS[:, 1:] = document_ids_BS[:, 1:] != document_ids_BS[:, :-1]
    starts_BS = torch.where(begins_BS, index_S, 0).cummax(dim=1).values
    return index_S - starts_BS


class Rotation:
    """Rotary position embedding (Su et al. 2021, "RoFormer", section 3.2) of given positions.

    Feature i of a head is paired with feature i + D/2, as in GPT-NeoX, Megatron and transformers.

    Args:
        positions: [S], or [B, P] for narrow positions: their places in the whole row.
        head_dim: D, even.
        base: of the wavelengths, 2 pi base^(2 i / D).
        dtype: of what will be rotated. The angles themselves are fp32.
    """

    def __init__(self, positions: torch.Tensor, head_dim: int, base: float, dtype: torch.dtype) -> None:
        exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
        angles = positions.float().unsqueeze(-1) * base**-exponents
        cos, sin = angles.cos(), angles.sin()
        # One sign for each half: x rotated by half a head then needs no negation.
        self.cos = torch.cat((cos, cos), -1).to(dtype)
        self.sin = torch.cat((-sin, sin), -1).to(dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[B, positions, ..., D] -> the same shape, each position turned by its angle."""
        shape = (*self.cos.shape[:-1], *(1,) * (x.dim() - 3), self.cos.shape[-1])
        first, second = x.chunk(2, -1)
        return torch.addcmul(x * self.cos.view(shape), torch.cat((second, first), -1), self.sin.view(shape))


def build_rotation(
    config: ModelConfig, positions: torch.Tensor, dtype: torch.dtype, *, is_local: bool = False
) -> Rotation | None:
    """The rotation of queries and keys at ``positions`` (as in ``Rotation``); None unless the model has RoPE.

    ``is_local``: for attention to a window, which may have a base of its own.
    """
    if config.position != "rope":
        return None
    base = config.local_rotary_base if is_local else config.rotary_base
    return Rotation(positions, config.head_dim, base, dtype)


def build_slopes(config: ModelConfig, device: torch.device) -> torch.Tensor | None:
    """ALiBi's slopes of this rank's heads, fp32 [A]; None unless the model has ALiBi."""
    if config.position != "alibi":
        return None
    group = tensor_parallel_group()
    return alibi_slopes(config.num_attention_heads, device).chunk(group.size())[group.rank()]


def alibi_slopes(num_heads: int, device: torch.device) -> torch.Tensor:
    """Slope of each of all heads, fp32 [num_heads] (Press et al. 2022, "Train Short, Test Long", section 3).

    With n heads, n a power of two: 2^(-8/n), 2^(-16/n), ... Other numbers take those of the power below
    and fill up with every second slope of the power above, as in the authors' code.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    steps = torch.arange(1, power + 1, device=device, dtype=torch.float32)
    between = 2 * torch.arange(num_heads - power, device=device, dtype=torch.float32) + 1
    return torch.cat((2 ** (-8 * steps / power), 2 ** (-4 * between / power)))
