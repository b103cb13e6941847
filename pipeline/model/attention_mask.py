"""The mask of attention: which keys a query may see, and how much it prefers near ones.

Shape suffixes: B rows of a batch, S tokens of a row (keys), Q positions that query (S of them, or the P narrow
ones), A attention heads of this rank, D size of a head.
"""

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from pipeline.model.window import window_bias

Score = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionMask:
    """What all attention sublayers of one side of the narrowing point share."""

    bias: torch.Tensor | None = None
    """Bool on CUDA (True: may be seen), or added to the scores; broadcasts to [B, A, Q, S]. None: all is seen."""
    window_bias: torch.Tensor | None = None
    """In place of it, for attention to a window: what ``windowed_attention`` adds to the scores of its blocks."""
    block_mask: BlockMask | None = None
    """The same for FlexAttention, which skips the blocks that nobody sees; then both are None."""
    score: Score | None = None
    """What FlexAttention does to a score: ALiBi."""


def attention_mask(
    key_mask_B11S: torch.Tensor | None,
    document_ids_BS: torch.Tensor | None,
    slopes_A: torch.Tensor | None,
    positions: torch.Tensor,
    seq_length: int,
    dtype: torch.dtype,
    *,
    use_blocks: bool,
    radius: int | None = None,
) -> AttentionMask:
    """Join padding, documents, the window and ALiBi into what one attention call takes.

    Args:
        key_mask_B11S: True where a key is a real token; None if every one is.
        document_ids_BS: which document of its row a token belongs to; None if all may see each other.
        slopes_A: ALiBi's slopes of this rank's heads; None without ALiBi.
        positions: places of the queries in their rows: [Q], or [B, Q] where each row has its own.
        seq_length: S.
        dtype: of the queries and keys.
        use_blocks: FlexAttention in place of a mask over all pairs. It never forms the pairs between
            documents or beyond the window, trains on CUDA only and knows no dropout.
        radius: how far a query sees on either side, where every position of the row queries; None: everywhere.
    """
    positions_BQ = positions if positions.dim() == 2 else positions.unsqueeze(0)
    if use_blocks and (document_ids_BS is not None or radius is not None):
        return _blocks(key_mask_B11S, document_ids_BS, slopes_A, positions_BQ, seq_length, radius)
    if radius is not None:
        device = positions.device
        bias = window_bias(radius, key_mask_B11S, document_ids_BS, slopes_A, seq_length, dtype, device)
        return AttentionMask(window_bias=bias)
    seen = key_mask_B11S
    if document_ids_BS is not None:
        query_ids_BQ = document_ids_BS.gather(1, positions_BQ.expand(len(document_ids_BS), -1))
        same_B1QS = (query_ids_BQ.unsqueeze(-1) == document_ids_BS.unsqueeze(1)).unsqueeze(1)
        seen = same_B1QS if seen is None else same_B1QS & seen
    if slopes_A is None:
        if seen is not None and not positions.is_cuda:
            # Once for all layers: on CPU every attention call would make it of the bool.
            seen = torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, float("-inf"))
        return AttentionMask(bias=seen)
    distance_BQS = (positions_BQ.unsqueeze(-1) - torch.arange(seq_length, device=positions.device)).abs()
    bias_BAQS = -slopes_A[:, None, None] * distance_BQS.unsqueeze(1)
    if seen is not None:
        bias_BAQS = bias_BAQS.masked_fill(~seen, float("-inf"))
    return AttentionMask(bias=bias_BAQS.to(dtype))


def _blocks(
    key_mask_B11S: torch.Tensor | None,
    document_ids_BS: torch.Tensor | None,
    slopes_A: torch.Tensor | None,
    positions_BQ: torch.Tensor,
    seq_length: int,
    radius: int | None,
) -> AttentionMask:
    by_row = key_mask_B11S if document_ids_BS is None else document_ids_BS
    num_rows = len(positions_BQ if by_row is None else by_row)
    query_ids_BQ = document_ids_BS
    if document_ids_BS is not None:
        query_ids_BQ = document_ids_BS.gather(1, positions_BQ.expand(num_rows, -1))

    def distance(b: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (positions_BQ[b % len(positions_BQ), q] - k).abs()  # of one row, or of each its own

    def seen(b: torch.Tensor, _h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        found = q >= 0
        if query_ids_BQ is not None and document_ids_BS is not None:
            found = query_ids_BQ[b, q] == document_ids_BS[b, k]
        if key_mask_B11S is not None:
            found = found & key_mask_B11S[b, 0, 0, k]
        if radius is not None:  # padding sees itself, as in window_bias
            found = (found & (distance(b, q, k) <= radius)) | (distance(b, q, k) == 0)
        return found

    def alibi(score: torch.Tensor, b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        assert slopes_A is not None
        return score - slopes_A[h] * distance(b, q, k)

    mask = create_block_mask(seen, num_rows, None, positions_BQ.shape[1], seq_length, device=str(positions_BQ.device))
    return AttentionMask(block_mask=mask, score=None if slopes_A is None else alibi)


def flex(q_BAQD: torch.Tensor, k_BASD: torch.Tensor, v_BASD: torch.Tensor, mask: AttentionMask) -> torch.Tensor:
    """FlexAttention (Dong et al. 2024) over the blocks of ``mask``: [B, A, Q, D]."""
    kernel = _compiled_flex() if q_BAQD.is_cuda else flex_attention
    output = kernel(q_BAQD, k_BASD, v_BASD, score_mod=mask.score, block_mask=mask.block_mask)
    assert isinstance(output, torch.Tensor)
    return output


@functools.cache
def _compiled_flex() -> Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]:
    # Uncompiled it would form all scores; shapes are static, so one compilation per side suffices.
    return torch.compile(flex_attention, dynamic=False)
