"""Self-attention sublayers: over every position, and from narrow positions to the frozen state.

Shape suffixes: B rows of a batch, S tokens of a row, P narrow positions of a row, H ``hidden_size``, A attention
heads of this rank, D size of a head, F keys and values of its heads together. Q stands for S or P queries.
"""

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.config import ModelConfig
from pipeline.model.attention_mask import AttentionMask, flex
from pipeline.model.linear_and_norm import column_linear, interleaved_column_linear, row_linear
from pipeline.model.parameters import output_dropout
from pipeline.model.position import Rotation
from pipeline.model.sublayer import Sublayer
from pipeline.model.window import windowed_attention
from pipeline.parallel.dropout_seeds import tensor_parallel_dropout
from pipeline.parallel.groups import tensor_parallel_group
from pipeline.parallel.layers import Initializer

_MANY_SCORES = 2**20
"""Of a head."""


class _Attention(Sublayer):
    """What both kinds of attention share: the scaled product and the output projection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, output_dropout(config, "s"))
        self.head_dim = config.head_dim
        self.local_heads = config.num_attention_heads // tensor_parallel_group().size()
        self.attention_dropout = config.attention_dropout
        self.linear_proj = row_linear(config, config.hidden_size)

    def _attend(
        self,
        q_BAQD: torch.Tensor,
        k_BASD: torch.Tensor,
        v_BASD: torch.Tensor,
        mask: AttentionMask,
        residual_BQH: torch.Tensor,
    ) -> torch.Tensor:
        dropout_p = self.attention_dropout if self.training else 0.0
        if mask.block_mask is not None:  # then there is no dropout
            context_BAQD = flex(q_BAQD, k_BASD, v_BASD, mask)
        else:
            with tensor_parallel_dropout(dropout_p):  # a rank's heads are its own, so are the masks of their dropout
                if mask.window_bias is not None:
                    context_BAQD = windowed_attention(q_BAQD, k_BASD, v_BASD, mask.window_bias, dropout_p)
                else:
                    context_BAQD = dot_product_attention(q_BAQD, k_BASD, v_BASD, mask.bias, dropout_p)
        context_BQH = context_BAQD.transpose(1, 2).flatten(2)
        return self._output(residual_BQH, self.linear_proj(context_BQH))


class FullAttention(_Attention):
    """Every position attends to every position (an ``s`` left of the ``:``), or to those in a window (a ``w``)."""

    def __init__(self, config: ModelConfig, init_method: Initializer) -> None:
        super().__init__(config)
        # Output features are [num_heads, 3, head_dim], so that a tensor-parallel rank holds whole heads.
        self.linear_qkv = column_linear(config, 3 * config.hidden_size, init_method)

    def forward(self, state_BSH: torch.Tensor, mask: AttentionMask, rotation: Rotation | None) -> torch.Tensor:
        """[B, S, H] -> [B, S, H]."""
        qkv_BSA3D = self.linear_qkv(self._input(state_BSH)).unflatten(-1, (self.local_heads, 3, self.head_dim))
        if rotation is None:
            q_BASD, k_BASD, v_BASD = qkv_BSA3D.permute(3, 0, 2, 1, 4).unbind(0)
        else:
            qk_BSA2D, v_BSA1D = qkv_BSA3D.split((2, 1), dim=3)
            q_BASD, k_BASD = rotation(qk_BSA2D).permute(3, 0, 2, 1, 4).unbind(0)
            v_BASD = v_BSA1D.squeeze(3).transpose(1, 2)
        return self._attend(q_BASD, k_BASD, v_BASD, mask, state_BSH)


class NarrowAttention(_Attention):
    """The narrow positions attend to the state frozen at the narrowing point (an ``s`` right of the ``:``).

    Queries come from the narrow positions. Keys and values come from the last full-length state, which no
    narrow sublayer changes (Li et al. 2023, SparseQueries): the encoder projects them once for all.
    """

    def __init__(self, config: ModelConfig, init_method: Initializer) -> None:
        super().__init__(config)
        self.linear_q = column_linear(config, config.hidden_size, init_method)

    def forward(
        self,
        narrow_BPH: torch.Tensor,
        k_BASD: torch.Tensor,
        v_BASD: torch.Tensor,
        mask: AttentionMask,
        rotation: Rotation | None,
    ) -> torch.Tensor:
        """[B, P, H] -> [B, P, H]; ``rotation`` is that of the narrow positions in the whole row."""
        q_BPAD = self.linear_q(self._input(narrow_BPH)).unflatten(-1, (self.local_heads, self.head_dim))
        if rotation is not None:
            q_BPAD = rotation(q_BPAD)
        return self._attend(q_BPAD.transpose(1, 2), k_BASD, v_BASD, mask, narrow_BPH)


class FrozenKeyValue(nn.Module):
    """Keys and values of the frozen state for every narrow attention sublayer."""

    def __init__(self, config: ModelConfig, num_projections: int, init_method: Initializer) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        # Output features are [num_heads, projections, 2, head_dim]: a tensor-parallel rank holds whole heads.
        self.linear = interleaved_column_linear(config, num_projections, init_method)

    def forward(self, frozen_BSH: torch.Tensor, rotation: Rotation | None) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """[B, S, H] -> (keys, values) of each projection, each [B, A, S, D]."""
        found = []
        for kv_BSF in self.linear(frozen_BSH):
            # unbind's backward joins both gradients in one pass, where slices would add tensors of full size.
            k_BSAD, v_BSAD = kv_BSF.unflatten(-1, (-1, 2, self.head_dim)).unbind(3)
            if rotation is not None:
                k_BSAD = rotation(k_BSAD)
            found.append((k_BSAD.transpose(1, 2), v_BSAD.transpose(1, 2)))
        return found


def dot_product_attention(
    q_BAQD: torch.Tensor,
    k_BASD: torch.Tensor,
    v_BASD: torch.Tensor,
    bias: torch.Tensor | None,
    dropout_p: float,
) -> torch.Tensor:
    """softmax(q k^T / sqrt(D) + bias) v: [B, A, Q, D]. On CUDA ``bias`` may be bool, True at the keys that are seen."""
    if q_BAQD.is_cpu and takes_products(q_BAQD, k_BASD):
        return plain_attention(q_BAQD, k_BASD, v_BASD, bias, dropout_p)
    return F.scaled_dot_product_attention(q_BAQD, k_BASD, v_BASD, attn_mask=bias, dropout_p=dropout_p)


def takes_products(q_BAQD: torch.Tensor, k_BASD: torch.Tensor) -> bool:
    """Whether attention on CPU is two plain products: in half precision, for rows that are not long.

    There they train up to 2.5 times faster than torch's fused kernel. From 1,024 tokens on they are hardly faster, and
    all their scores are in memory (benchmarks/cpu_choices.py).
    """
    return q_BAQD.dtype != torch.float32 and q_BAQD.shape[-2] * k_BASD.shape[-2] < _MANY_SCORES


def plain_attention(
    q_BAQD: torch.Tensor,
    k_BASD: torch.Tensor,
    v_BASD: torch.Tensor,
    bias: torch.Tensor | None,
    dropout_p: float,
) -> torch.Tensor:
    """``dot_product_attention`` as two products; the softmax computes in fp32 whatever its input's type."""
    scores_BAQS = (q_BAQD * q_BAQD.shape[-1] ** -0.5) @ k_BASD.transpose(-1, -2)
    if bias is not None:
        scores_BAQS = scores_BAQS + bias
    return F.dropout(scores_BAQS.softmax(dim=-1), dropout_p) @ v_BASD
