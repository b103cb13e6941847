"""Which keys a query may see, and how much it prefers near ones.

Shape suffixes: B rows, T positions of a row (keys), N positions that ask (T of them, or the narrow
ones), K attention heads of this rank, D size of a head.
"""

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

Score = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Visibility:
    """What all attention sublayers of one side of the narrowing point share."""

    bias: torch.Tensor | None = None
    """Bool (True: may be seen) or added to the scores; broadcasts to [B, K, N, T]. None: everything is seen."""
    block_mask: BlockMask | None = None
    """The same for FlexAttention, which skips the blocks between documents; then ``bias`` is None."""
    score: Score | None = None
    """What FlexAttention does to a score: ALiBi."""


def visibility(
    key_mask_B11T: torch.Tensor | None,
    document_ids_BT: torch.Tensor | None,
    slopes_K: torch.Tensor | None,
    positions: torch.Tensor,
    length: int,
    dtype: torch.dtype,
    *,
    use_blocks: bool,
) -> Visibility:
    """Join padding, documents and ALiBi into what one attention call takes.

    Args:
        key_mask_B11T: True where a key is a real token; None if every one is.
        document_ids_BT: which document of its row a token belongs to; None if all may see each other.
        slopes_K: ALiBi's slopes of this rank's heads; None without ALiBi.
        positions: places of the queries in their rows: [N], or [B, N] where each row has its own.
        length: T.
        dtype: of the queries and keys.
        use_blocks: FlexAttention in place of a mask over all pairs. It never forms the pairs between
            documents, trains on CUDA only and knows no dropout.
    """
    positions_BN = positions if positions.dim() == 2 else positions.unsqueeze(0)
    if use_blocks and document_ids_BT is not None:
        return _blocks(key_mask_B11T, document_ids_BT, slopes_K, positions_BN, length)
    seen = key_mask_B11T
    if document_ids_BT is not None:
        asking_BN = document_ids_BT.gather(1, positions_BN.expand(len(document_ids_BT), -1))
        same_B1NT = (asking_BN.unsqueeze(-1) == document_ids_BT.unsqueeze(1)).unsqueeze(1)
        seen = same_B1NT if seen is None else same_B1NT & seen
    if slopes_K is None:
        return Visibility(bias=seen)
    distance_BNT = (positions_BN.unsqueeze(-1) - torch.arange(length, device=positions.device)).abs()
    bias_BKNT = -slopes_K[:, None, None] * distance_BNT.unsqueeze(1)
    if seen is not None:
        bias_BKNT = bias_BKNT.masked_fill(~seen, float("-inf"))
    return Visibility(bias=bias_BKNT.to(dtype))


def _blocks(
    key_mask_B11T: torch.Tensor | None,
    document_ids_BT: torch.Tensor,
    slopes_K: torch.Tensor | None,
    positions_BN: torch.Tensor,
    length: int,
) -> Visibility:
    rows = len(document_ids_BT)
    positions_BN = positions_BN.expand(rows, -1)
    asking_BN = document_ids_BT.gather(1, positions_BN)

    def seen(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        same = asking_BN[b, q] == document_ids_BT[b, k]
        return same if key_mask_B11T is None else same & key_mask_B11T[b, 0, 0, k]

    def alibi(score: torch.Tensor, b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        assert slopes_K is not None
        return score - slopes_K[h] * (positions_BN[b, q] - k).abs()

    mask = create_block_mask(seen, rows, None, positions_BN.shape[1], length, device=str(positions_BN.device))
    return Visibility(block_mask=mask, score=None if slopes_K is None else alibi)


def flex(q_BKND: torch.Tensor, k_BKTD: torch.Tensor, v_BKTD: torch.Tensor, seen: Visibility) -> torch.Tensor:
    """FlexAttention (Dong et al. 2024) over the blocks of ``seen``: [B, K, N, D]."""
    kernel = _compiled_flex() if q_BKND.is_cuda else flex_attention
    output = kernel(q_BKND, k_BKTD, v_BKTD, score_mod=seen.score, block_mask=seen.block_mask)
    assert isinstance(output, torch.Tensor)
    return output


@functools.cache
def _compiled_flex() -> Callable[..., object]:
    # Uncompiled it would form all scores; shapes are static, so one compilation a side suffices.
    return torch.compile(flex_attention, dynamic=False)
