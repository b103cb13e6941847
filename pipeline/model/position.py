"""Positions: rotary embeddings, ALiBi, and where a position starts again.

Shape suffixes: B rows, T positions of a row, N positions that ask, K attention heads of this rank,
D size of a head.
"""

import math

import torch


def positions_in_document(document_ids_BT: torch.Tensor) -> torch.Tensor:
    """Each token's place in its own document, from 0: int64 [B, T].

    A document of a packed row then has the positions that it has in a row of its own.
    """
    index_T = torch.arange(document_ids_BT.shape[1], device=document_ids_BT.device)
    begins_BT = torch.ones_like(document_ids_BT, dtype=torch.bool)
    begins_BT[:, 1:] = document_ids_BT[:, 1:] != document_ids_BT[:, :-1]
    starts_BT = torch.where(begins_BT, index_T, 0).cummax(dim=1).values
    return index_T - starts_BT


class Rotation:
    """Rotary position embedding (Su et al. 2021, "RoFormer", section 3.2) of given positions.

    Feature i of a head is paired with feature i + D/2, as in GPT-NeoX, Megatron and transformers.

    Args:
        positions: [T], or [B, N] for gathered rows: their places in the whole row.
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


def alibi_slopes(num_heads: int, device: torch.device) -> torch.Tensor:
    """Slope of each of all heads, fp32 [num_heads] (Press et al. 2022, "Train Short, Test Long", section 3).

    With n heads, n a power of two: 2^(-8/n), 2^(-16/n), ... Other numbers take those of the power below
    and fill up with every second slope of the power above, as in the authors' code.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    steps = torch.arange(1, power + 1, device=device, dtype=torch.float32)
    between = 2 * torch.arange(num_heads - power, device=device, dtype=torch.float32) + 1
    return torch.cat((2 ** (-8 * steps / power), 2 ** (-4 * between / power)))
