"""Self-attention sublayers: over every position, and from narrow queries to a frozen state.

Shape suffixes: B rows, T positions of a row, N narrow positions, H hidden size, K attention
heads of this rank, D size of a head.
"""

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.config import ModelConfig
from pipeline.parallel import (
    ColumnLinear,
    Initializer,
    RowLinear,
    tensor_parallel_dropout,
    tensor_parallel_group,
)


class _Attention(nn.Module):
    """What both kinds of attention share: the scaled product, the output projection, post-LN."""

    def __init__(self, config: ModelConfig, init_method: Initializer) -> None:
        super().__init__()
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.local_heads = config.num_attention_heads // tensor_parallel_group().size()
        self.attention_dropout = config.attention_dropout
        self.linear_proj = RowLinear(config.hidden_size, config.hidden_size, init_method)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)

    def _attend(
        self,
        q_BKND: torch.Tensor,
        k_BKTD: torch.Tensor,
        v_BKTD: torch.Tensor,
        key_mask_B11T: torch.Tensor | None,
        residual_BNH: torch.Tensor,
    ) -> torch.Tensor:
        dropout_p = self.attention_dropout if self.training else 0.0
        with tensor_parallel_dropout(dropout_p):  # a rank's heads are its own, so are the masks of their dropout
            context_BKND = dot_product_attention(q_BKND, k_BKTD, v_BKTD, key_mask_B11T, dropout_p)
        context_BNH = context_BKND.transpose(1, 2).flatten(2)
        return self.norm(residual_BNH + self.dropout(self.linear_proj(context_BNH)))


class FullAttention(_Attention):
    """Every position attends to every position (an ``s`` left of the ``:``)."""

    def __init__(self, config: ModelConfig, init_method: Initializer) -> None:
        super().__init__(config, init_method)
        # Output rows are [num_heads, 3, head_dim], so that a tensor-parallel slice holds whole heads.
        self.linear_qkv = ColumnLinear(config.hidden_size, 3 * config.hidden_size, init_method)

    def forward(self, state_BTH: torch.Tensor, key_mask_B11T: torch.Tensor | None) -> torch.Tensor:
        """[B, T, H] -> [B, T, H]; ``key_mask`` is True where a key may be attended to."""
        qkv = self.linear_qkv(state_BTH).unflatten(-1, (self.local_heads, 3, self.head_dim))
        q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)
        return self._attend(q, k, v, key_mask_B11T, state_BTH)


class NarrowAttention(_Attention):
    """The narrow rows attend to the state frozen at the narrowing point (an ``s`` right of the ``:``).

    Queries come from the narrow rows; keys and values are this sublayer's own projections of the
    last full-length state, which no narrow sublayer changes (Li et al. 2023, SparseQueries).
    """

    def __init__(self, config: ModelConfig, init_method: Initializer) -> None:
        super().__init__(config, init_method)
        self.linear_q = ColumnLinear(config.hidden_size, config.hidden_size, init_method)
        # Output rows are [num_heads, 2, head_dim].
        self.linear_kv = ColumnLinear(config.hidden_size, 2 * config.hidden_size, init_method)

    def forward(
        self, narrow_BNH: torch.Tensor, frozen_BTH: torch.Tensor, key_mask_B11T: torch.Tensor | None
    ) -> torch.Tensor:
        """[B, N, H] and the frozen [B, T, H] -> [B, N, H]."""
        q = self.linear_q(narrow_BNH).unflatten(-1, (self.local_heads, self.head_dim)).transpose(1, 2)
        kv = self.linear_kv(frozen_BTH).unflatten(-1, (self.local_heads, 2, self.head_dim))
        k, v = kv.permute(3, 0, 2, 1, 4).unbind(0)
        return self._attend(q, k, v, key_mask_B11T, narrow_BNH)


def dot_product_attention(
    q_BKND: torch.Tensor,
    k_BKTD: torch.Tensor,
    v_BKTD: torch.Tensor,
    key_mask_B11T: torch.Tensor | None,
    dropout_p: float,
) -> torch.Tensor:
    """softmax(q k^T / sqrt(D)) v over the keys whose mask is True: [B, K, N, D]."""
    if q_BKND.is_cuda or q_BKND.dtype == torch.float32:
        return F.scaled_dot_product_attention(q_BKND, k_BKTD, v_BKTD, attn_mask=key_mask_B11T, dropout_p=dropout_p)
    # On CPU two plain products train 1.4 to 2.5 times faster in bf16 than torch's fused kernel
    # (benchmarks/cpu_choices.py). The softmax itself computes in fp32 whatever its input's type.
    scores_BKNT = (q_BKND * q_BKND.shape[-1] ** -0.5) @ k_BKTD.transpose(-1, -2)
    if key_mask_B11T is not None:
        scores_BKNT = scores_BKNT.masked_fill(~key_mask_B11T, float("-inf"))
    return F.dropout(scores_BKNT.softmax(dim=-1), dropout_p) @ v_BKTD
