"""Self-attention sublayers: over every position, and from narrow queries to a frozen state.

Shape suffixes: B rows, T positions of a row, N narrow positions, H hidden size, K attention
heads of this rank, D size of a head, G key/value projections of the frozen state.
"""

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.config import ModelConfig
from pipeline.model.position import Rotation
from pipeline.model.sublayer import Sublayer
from pipeline.model.visibility import Visibility, flex
from pipeline.parallel.dropout_seeds import tensor_parallel_dropout
from pipeline.parallel.groups import tensor_parallel_group
from pipeline.parallel.layers import ColumnLinear, Initializer, RowLinear


class _Attention(Sublayer):
    """What both kinds of attention share: the scaled product and the output projection."""

    def __init__(self, config: ModelConfig, init_method: Initializer) -> None:
        super().__init__(config)
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.local_heads = config.num_attention_heads // tensor_parallel_group().size()
        self.attention_dropout = config.attention_dropout
        self.linear_proj = RowLinear(config.hidden_size, config.hidden_size, init_method, bias=config.bias)

    def _attend(
        self,
        q_BKND: torch.Tensor,
        k_BKTD: torch.Tensor,
        v_BKTD: torch.Tensor,
        seen: Visibility,
        residual_BNH: torch.Tensor,
    ) -> torch.Tensor:
        dropout_p = self.attention_dropout if self.training else 0.0
        if seen.block_mask is not None:  # then there is no dropout
            context_BKND = flex(q_BKND, k_BKTD, v_BKTD, seen)
        else:
            with tensor_parallel_dropout(dropout_p):  # a rank's heads are its own, so are the masks of their dropout
                context_BKND = dot_product_attention(q_BKND, k_BKTD, v_BKTD, seen.bias, dropout_p)
        context_BNH = context_BKND.transpose(1, 2).flatten(2)
        return self._output(residual_BNH, self.linear_proj(context_BNH))


class FullAttention(_Attention):
    """Every position attends to every position (an ``s`` left of the ``:``)."""

    def __init__(self, config: ModelConfig, init_method: Initializer) -> None:
        super().__init__(config, init_method)
        # Output rows are [num_heads, 3, head_dim], so that a tensor-parallel slice holds whole heads.
        self.linear_qkv = ColumnLinear(config.hidden_size, 3 * config.hidden_size, init_method, bias=config.bias)

    def forward(self, state_BTH: torch.Tensor, seen: Visibility, rotation: Rotation | None) -> torch.Tensor:
        """[B, T, H] -> [B, T, H]."""
        qkv = self.linear_qkv(self._input(state_BTH)).unflatten(-1, (self.local_heads, 3, self.head_dim))
        if rotation is None:
            q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)
        else:
            qk, v = qkv.split((2, 1), dim=3)
            q, k = rotation(qk).permute(3, 0, 2, 1, 4).unbind(0)
            v = v.squeeze(3).transpose(1, 2)
        return self._attend(q, k, v, seen, state_BTH)


class NarrowAttention(_Attention):
    """The narrow rows attend to the state frozen at the narrowing point (an ``s`` right of the ``:``).

    Queries come from the narrow rows. Keys and values come from the last full-length state, which no
    narrow sublayer changes (Li et al. 2023, SparseQueries): the encoder projects them once for all.
    """

    def __init__(self, config: ModelConfig, init_method: Initializer) -> None:
        super().__init__(config, init_method)
        self.linear_q = ColumnLinear(config.hidden_size, config.hidden_size, init_method, bias=config.bias)

    def forward(
        self,
        narrow_BNH: torch.Tensor,
        k_BKTD: torch.Tensor,
        v_BKTD: torch.Tensor,
        seen: Visibility,
        rotation: Rotation | None,
    ) -> torch.Tensor:
        """[B, N, H] -> [B, N, H]; ``rotation`` is that of the narrow rows' places in the whole row."""
        q_BNKD = self.linear_q(self._input(narrow_BNH)).unflatten(-1, (self.local_heads, self.head_dim))
        if rotation is not None:
            q_BNKD = rotation(q_BNKD)
        return self._attend(q_BNKD.transpose(1, 2), k_BKTD, v_BKTD, seen, narrow_BNH)


class FrozenKeyValue(nn.Module):
    """Keys and values of the frozen state for every narrow attention sublayer, as one matrix product."""

    def __init__(self, config: ModelConfig, num_projections: int, init_method: Initializer) -> None:
        super().__init__()
        self.num_projections = num_projections
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.local_heads = config.num_attention_heads // tensor_parallel_group().size()
        # Output rows are [num_heads, projections, 2, head_dim]: a tensor-parallel slice holds whole heads.
        # One parameter rather than one a sublayer, so that ZeRO 3 gathers it where it is used.
        self.linear = ColumnLinear(
            config.hidden_size, 2 * num_projections * config.hidden_size, init_method, bias=config.bias
        )

    def forward(self, frozen_BTH: torch.Tensor, rotation: Rotation | None) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """[B, T, H] -> (keys, values) of each projection, each [B, K, T, D]."""
        kv = self.linear(frozen_BTH).unflatten(-1, (self.local_heads, self.num_projections, 2, self.head_dim))
        # Copied once, so that the heads of a projection lie together, as the products of attention want them.
        # unbind's backward joins all gradients in one pass, where slices would add tensors of full size.
        if rotation is None:
            parts = kv.permute(3, 4, 0, 2, 1, 5).contiguous().flatten(0, 1).unbind(0)
            return list(zip(parts[::2], parts[1::2], strict=True))
        keys, values = kv.unbind(4)
        heads_first = (part.permute(3, 0, 2, 1, 4).contiguous().unbind(0) for part in (rotation(keys), values))
        return list(zip(*heads_first, strict=True))


def dot_product_attention(
    q_BKND: torch.Tensor,
    k_BKTD: torch.Tensor,
    v_BKTD: torch.Tensor,
    bias: torch.Tensor | None,
    dropout_p: float,
) -> torch.Tensor:
    """softmax(q k^T / sqrt(D) + bias) v: [B, K, N, D]. A bool ``bias`` is True at the keys that are seen."""
    if q_BKND.is_cuda or q_BKND.dtype == torch.float32:
        return F.scaled_dot_product_attention(q_BKND, k_BKTD, v_BKTD, attn_mask=bias, dropout_p=dropout_p)
    # On CPU two plain products train 1.4 to 2.5 times faster in bf16 than torch's fused kernel
    # (benchmarks/cpu_choices.py). The softmax itself computes in fp32 whatever its input's type.
    scores_BKNT = (q_BKND * q_BKND.shape[-1] ** -0.5) @ k_BKTD.transpose(-1, -2)
    if bias is not None:
        is_mask = bias.dtype == torch.bool
        scores_BKNT = scores_BKNT.masked_fill(~bias, float("-inf")) if is_mask else scores_BKNT + bias
    return F.dropout(scores_BKNT.softmax(dim=-1), dropout_p) @ v_BKTD
