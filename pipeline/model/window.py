"""Attention to a window: every position sees those that are at most a radius away.

A row is cut into blocks that are at least as long as the radius. The queries of a block are multiplied by the keys of
their own block and its two neighbours, so the cost of a row grows with its length, not with its square.

Shape suffixes: B rows of a batch, S tokens of a row, A attention heads of this rank, D size of a head, N blocks of a
row, Q positions of a block, K those of a block and its neighbours: K = 3 Q. 1 stands where all share.
"""

import torch
import torch.nn.functional as F

_SMALLEST_BLOCK = 32
"""Shorter ones make products too small to be fast."""


def window_bias(
    radius: int,
    key_mask_B11S: torch.Tensor | None,
    document_ids_BS: torch.Tensor | None,
    slopes_A: torch.Tensor | None,
    seq_length: int,
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor:
    """What is added to the scores of every block: [B or 1, A or 1, N, Q, K]. See ``attention_mask``.

    A position sees itself in any case: padding without any key would be NaN, and so would its neighbours in the next
    sublayer.
    """
    length = min(max(radius, _SMALLEST_BLOCK), seq_length)
    places_1NQ = _blocks(torch.arange(seq_length, device=device).unsqueeze(0), 1, length, -1)
    keys_1NK = _with_neighbours(places_1NQ, 1, -1)
    distance_1NQK = (places_1NQ.unsqueeze(3) - keys_1NK.unsqueeze(2)).abs()
    seen = (distance_1NQK <= radius) & (keys_1NK >= 0).unsqueeze(2)
    if key_mask_B11S is not None:
        real_BNQ = _blocks(key_mask_B11S[:, 0, 0], 1, length, False)
        seen = seen & _with_neighbours(real_BNQ, 1, False).unsqueeze(2)
    if document_ids_BS is not None:
        ids_BNQ = _blocks(document_ids_BS, 1, length, -1)
        seen = seen & (ids_BNQ.unsqueeze(3) == _with_neighbours(ids_BNQ, 1, -1).unsqueeze(2))
    is_itself_QK = torch.eye(length, dtype=torch.bool, device=device).repeat(1, 3)
    is_itself_QK[:, :length] = is_itself_QK[:, 2 * length :] = False
    if slopes_A is None:
        bias = torch.zeros((), dtype=dtype, device=device)
    else:
        bias = -slopes_A[:, None, None, None] * distance_1NQK
    return bias.masked_fill(~(seen | is_itself_QK).unsqueeze(1), float("-inf")).to(dtype)


def windowed_attention(
    q_BASD: torch.Tensor, k_BASD: torch.Tensor, v_BASD: torch.Tensor, bias: torch.Tensor, dropout_p: float
) -> torch.Tensor:
    """softmax(q k^T / sqrt(D) + bias) v block by block, with the ``bias`` of ``window_bias``: [B, A, S, D]."""
    q_BANQD, k_BANQD, v_BANQD = (_blocks(x, 2, bias.shape[-2], 0.0) for x in (q_BASD, k_BASD, v_BASD))
    k_BANKD, v_BANKD = (_with_neighbours(x, 2, 0.0) for x in (k_BANQD, v_BANQD))
    scores_BANQK = (q_BANQD * q_BANQD.shape[-1] ** -0.5) @ k_BANKD.transpose(-1, -2) + bias
    context_BANQD = F.dropout(scores_BANQK.softmax(dim=-1), dropout_p) @ v_BANKD
    return context_BANQD.flatten(2, 3)[:, :, : q_BASD.shape[2]]


def _blocks(x: torch.Tensor, dim: int, length: int, fill: float) -> torch.Tensor:
    """Dimension ``dim`` as two, blocks and their ``length`` positions; ``fill`` stands behind the end."""
    missing = -x.shape[dim] % length
    if missing:
        x = torch.cat((x, x.new_full((*x.shape[:dim], missing, *x.shape[dim + 1 :]), fill)), dim)
    return x.unflatten(dim, (-1, length))


def _with_neighbours(blocks: torch.Tensor, dim: int, fill: float) -> torch.Tensor:
    """Each block of ``_blocks`` between the ones before and after it; ``fill`` where there is none."""
    number = blocks.shape[dim]
    outside = blocks.new_full((*blocks.shape[:dim], 1, *blocks.shape[dim + 1 :]), fill)
    extended = torch.cat((outside, blocks, outside), dim)
    return torch.cat([extended.narrow(dim, first, number) for first in range(3)], dim + 1)
