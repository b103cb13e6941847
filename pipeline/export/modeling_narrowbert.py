"""NarrowBERT for transformers (5.18 or newer). Self-contained: copied beside exported weights.

Source: Li, Keung, Cheng, Kasai, Smith, "NarrowBERT: Accelerating Masked Language Model Pretraining
and Inference", ACL 2023, arXiv 2301.04761.

The sublayers left of ``:`` in ``config.layout`` run on every position. They end in the frozen state, h_K in the
paper. Then only the *narrow positions* are computed further. A narrow attention sublayer takes its queries from them,
and its keys and values from the frozen state, which does not change. A narrow feed-forward sublayer runs on them
alone. Narrow positions never read each other. So the result at one does not depend on which others are narrow. Where
attention knows positions (rope, alibi), they are those of the whole row.

A ``w`` of the layout is attention to a window. It is computed in blocks, so that its cost grows with the length of a
row and not with its square (``windowed_attention``).

Parameter names are BERT's, with the narrow layers under ``bert.encoder_narrow`` as in the authors'
release; the state dict of layout ``12sf`` has exactly the keys of ``BertForMaskedLM``. Options that BERT
does not have add ``intermediate.gate`` (gated units), ``frozen_norm`` and ``final_norm`` (pre-norm); a
sublayer's norm is called ``output.LayerNorm`` wherever it stands.

Two optimisations are on by default. They change results by rounding only. Few narrow positions are *folded*
(``folded_attention``). A padded batch is *packed* (``Packing``): its padding is not computed, and the outputs there
are zeros.

Shapes: B rows of a batch, S tokens of a row, P narrow positions of a row, T real tokens of a whole batch without its
padding, Q queries of a whole batch, H hidden size, V vocabulary, C labels (classes), A attention heads, D = H / A.
"""

import itertools
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, TypedDict

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack  # pyright: ignore[reportPrivateImportUsage] typing's, for Python 3.10
from transformers.utils.generic import can_return_tuple, is_flash_attention_requested
from transformers.utils.output_capturing import capture_outputs

from .configuration_narrowbert import ATTENTIONS, NarrowBertConfig

try:  # torch 2.10 or newer
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None

IGNORE_INDEX = -100
GATED = {"geglu": "gelu", "swiglu": "silu"}


class OutputOptions(TypedDict, total=False):
    """What transformers hands through every ``forward``."""

    output_hidden_states: bool | None
    output_attentions: bool | None


Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and signed sines of rope's angles, [B or 1, 1, positions, D]."""


def build_norm(config: NarrowBertConfig) -> nn.Module:
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.hidden_size, eps=config.layer_norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, bias=config.bias)


def rotation(
    config: NarrowBertConfig, positions: torch.Tensor, dtype: torch.dtype, *, is_local: bool = False
) -> Rotation | None:
    """Rope's angles of ``positions`` [B or 1, any number], in a window's own base; None for other positions."""
    if config.position_embedding_type != "rope":
        return None
    theta = config.local_rope_theta if is_local else config.rope_theta
    head_dim = config.hidden_size // config.num_attention_heads
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions[:, None, :, None].float() * theta**-exponents
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)


def rotate(x_BAPD: torch.Tensor, by: Rotation | None) -> torch.Tensor:
    """Turn feature i together with feature i + D/2 by its position's angle."""
    if by is None:
        return x_BAPD
    cos, sin = (angles.to(x_BAPD.device) for angles in by)  # layers may be spread over several GPUs
    first, second = x_BAPD.chunk(2, -1)
    return x_BAPD * cos + torch.cat((second, first), -1) * sin


def add_alibi(
    config: NarrowBertConfig, mask: torch.Tensor | None, queries: torch.Tensor, keys: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor | None:
    """``mask`` (bool or added to the scores) joined with ALiBi's bias by distance, where the model has it.

    queries [B or 1, P] and keys [B or 1, S] are positions.
    """
    if config.position_embedding_type != "alibi":
        return mask
    slopes_A11 = alibi_slopes(config.num_attention_heads, queries.device).view(-1, 1, 1)
    bias_BAPS = -slopes_A11 * (queries[:, None, :, None] - keys[:, None, None, :]).abs()
    if mask is None:
        return bias_BAPS.to(dtype)
    if mask.dtype == torch.bool:
        return bias_BAPS.masked_fill(~mask, torch.finfo(dtype).min).to(dtype)
    return mask + bias_BAPS.to(dtype)


def alibi_slopes(heads: int, device: torch.device) -> torch.Tensor:
    """ALiBi's slope of each head, [A]."""
    power = 1 << (heads.bit_length() - 1)  # the largest power of two that is not above
    exponents = [8 * (i + 1) / power for i in range(power)] + [4 * (2 * i + 1) / power for i in range(heads - power)]
    return 2.0 ** -torch.tensor(exponents, device=device)


def blocks(x: torch.Tensor, dim: int, length: int, fill: float) -> torch.Tensor:
    """Dimension ``dim`` as two, blocks and their ``length`` positions; ``fill`` stands behind the end."""
    missing = -x.shape[dim] % length
    if missing:
        x = torch.cat((x, x.new_full((*x.shape[:dim], missing, *x.shape[dim + 1 :]), fill)), dim)
    return x.unflatten(dim, (-1, length))


def with_neighbours(x: torch.Tensor, dim: int, fill: float) -> torch.Tensor:
    """Each block of ``blocks`` between the ones before and after it; ``fill`` where there is none."""
    outside = x.new_full((*x.shape[:dim], 1, *x.shape[dim + 1 :]), fill)
    extended = torch.cat((outside, x, outside), dim)
    return torch.cat([extended.narrow(dim, first, x.shape[dim]) for first in range(3)], dim + 1)


def window_bias(
    config: NarrowBertConfig,
    places: torch.Tensor,
    real_BS: torch.Tensor | None,
    sentences: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """What is added to the scores of every block of a ``w``: [B or 1, A or 1, blocks, Q, 3 Q], Q positions a block.

    Args:
        places: [B or 1, S], where each token stands in its row, ascending within it.
        real_BS: False at padding, which nobody sees but itself: without any key it would be NaN.
        sentences: [B or 1, S], whose tokens alone see each other.
    """
    length = min(max(config.attention_window // 2, 32), places.shape[1])  # shorter blocks are too small to be fast
    of_queries = blocks(places, 1, length, -1)
    of_keys = with_neighbours(of_queries, 1, -1)
    distance = (of_queries.unsqueeze(3) - of_keys.unsqueeze(2)).abs()
    seen = (distance <= config.attention_window // 2) & (of_keys >= 0).unsqueeze(2)
    if real_BS is not None:
        seen = seen & with_neighbours(blocks(real_BS, 1, length, False), 1, False).unsqueeze(2)
    if sentences is not None:
        ids = blocks(sentences, 1, length, -1)
        seen = seen & (ids.unsqueeze(3) == with_neighbours(ids, 1, -1).unsqueeze(2))
    own = torch.eye(length, dtype=torch.bool, device=places.device)
    is_itself = torch.cat((torch.zeros_like(own), own, torch.zeros_like(own)), 1)
    bias = torch.zeros((), dtype=dtype, device=places.device)
    if config.position_embedding_type == "alibi":
        bias = -alibi_slopes(config.num_attention_heads, places.device)[:, None, None, None] * distance.unsqueeze(1)
    return bias.masked_fill(~(seen | is_itself).unsqueeze(1), float("-inf")).to(dtype)


def add_window(config: NarrowBertConfig, mask: torch.Tensor | None, hidden_BSH: torch.Tensor) -> torch.Tensor:
    """``mask`` over all pairs (bool or added to the scores) joined with the window, to be added: [B or 1, 1, S, S]."""
    places = torch.arange(hidden_BSH.shape[1], device=hidden_BSH.device)
    is_far = (places[:, None] - places).abs() > config.attention_window // 2
    if mask is None:
        mask = hidden_BSH.new_zeros(1, 1, *is_far.shape)
    elif mask.dtype == torch.bool:
        mask = hidden_BSH.new_zeros(mask.shape).masked_fill(~mask, torch.finfo(hidden_BSH.dtype).min)
    return mask.masked_fill(is_far, torch.finfo(hidden_BSH.dtype).min)


def windowed_attention(
    query_BASD: torch.Tensor, key_BASD: torch.Tensor, value_BASD: torch.Tensor, bias: torch.Tensor, dropout: float
) -> torch.Tensor:
    """Attention to a window, with the ``bias`` of ``window_bias``: [B, S, A, D].

    The queries of a block are multiplied by the keys of it and of its two neighbours, no more.
    """
    query, key, value = (blocks(x, 2, bias.shape[-2], 0.0) for x in (query_BASD, key_BASD, value_BASD))
    key, value = (with_neighbours(x, 2, 0.0) for x in (key, value))
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2) + bias
    context = nn.functional.dropout(scores.softmax(dim=-1), p=dropout, training=dropout > 0) @ value
    return context.flatten(2, 3)[:, :, : query_BASD.shape[2]].transpose(1, 2)


class NarrowBertEmbeddings(nn.Module):
    """Sum of word, absolute position (if the model has any) and segment embeddings, then norm and dropout."""

    def __init__(self, config: NarrowBertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = None
        if config.position_embedding_type == "absolute":
            self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = build_norm(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids_BS: torch.Tensor | None,
        token_type_ids_BS: torch.Tensor | None,
        position_ids_BS: torch.Tensor | None,
        inputs_embeds_BSH: torch.Tensor | None,
    ) -> torch.Tensor:
        words_BSH = self.word_embeddings(input_ids_BS) if inputs_embeds_BSH is None else inputs_embeds_BSH
        if token_type_ids_BS is None:
            token_type_ids_BS = torch.zeros(words_BSH.shape[:2], dtype=torch.long, device=words_BSH.device)
        hidden_BSH = words_BSH + self.token_type_embeddings(token_type_ids_BS)
        if self.position_embeddings is not None:
            length = words_BSH.shape[1]
            if position_ids_BS is None:
                if length > self.position_embeddings.num_embeddings:
                    raise ValueError(
                        f"the input has {length} positions, the model {self.position_embeddings.num_embeddings}: "
                        "truncate it (tokenizer(..., truncation=True))"
                    )
                position_ids_BS = torch.arange(length, device=words_BSH.device).unsqueeze(0)
            hidden_BSH = hidden_BSH + self.position_embeddings(position_ids_BS)
        return self.dropout(self.LayerNorm(hidden_BSH))


def eager_attention(
    module: nn.Module,
    query_BAPD: torch.Tensor,
    key_BASD: torch.Tensor,
    value_BASD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Unpack[OutputOptions],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain operations, for ``output_attentions``. Returns [B, P, A, D] and [B, A, P, S]."""
    scores_BAPS = query_BAPD @ key_BASD.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores_BAPS = scores_BAPS + attention_mask
    weights_BAPS = nn.functional.dropout(scores_BAPS.softmax(dim=-1), p=dropout, training=module.training)
    return (weights_BAPS @ value_BASD).transpose(1, 2), weights_BAPS


class Local(NamedTuple):
    """What the attentions to a window share: ``window_bias``, or a mask over all pairs; and rope's angles."""

    window: torch.Tensor | None
    mask: torch.Tensor | None
    by: Rotation | None


class Packing(NamedTuple):
    """The real tokens of a padded batch in one line, T of them; its sentences stand sorted by length."""

    tokens_T: torch.Tensor
    """Where each token was in the batch flattened to [B * S]."""
    order_B: torch.Tensor
    """Which row of the batch is the first sentence, the second, ..."""
    runs: tuple[tuple[int, int], ...]
    """(length, sentences of this length), ascending: the buckets, none of which holds padding."""
    ends: torch.Tensor
    """int32: 0 and where each sentence ends, for kernels; made once for all layers."""
    num_narrow: int | None = None
    """Queries of a sentence; None where each of its tokens is one."""


def pack(attention_mask_BS: torch.Tensor) -> Packing | None:
    """How to lay out the real tokens; None where there is no padding, or nothing but padding in a row."""
    real_BS = attention_mask_BS != 0
    lengths_B, order_B = real_BS.sum(dim=1).sort(stable=True)
    lengths = lengths_B.tolist()
    if not 0 < lengths[0] < real_BS.shape[1]:
        return None
    rows_T, columns_T = real_BS[order_B].nonzero(as_tuple=True)
    runs = tuple((length, len(list(equal))) for length, equal in itertools.groupby(lengths))
    ends = nn.functional.pad(lengths_B.cumsum(0), (1, 0)).to(torch.int32)
    return Packing(order_B[rows_T] * real_BS.shape[1] + columns_T, order_B, runs, ends)


def unpack(hidden_1TH: torch.Tensor, packing: Packing, batch: int, length: int) -> torch.Tensor:
    """The packed rows at their places in [B, S, H]; zeros where there was padding."""
    flat = hidden_1TH.new_zeros(batch * length, hidden_1TH.shape[-1])
    return flat.index_copy(0, packing.tokens_T, hidden_1TH[0]).unflatten(0, (batch, length))


def packed_attention(
    query_1AQD: torch.Tensor, key_1ATD: torch.Tensor, value_1ATD: torch.Tensor, packing: Packing, dropout: float
) -> torch.Tensor:
    """Attention inside each sentence of a packed batch: [1, Q, A, D], Q the queries of all sentences.

    One fused attention for all sentences of equal length, or one kernel for all on CUDA.
    """
    if query_1AQD.is_cuda:
        return varlen_attention(query_1AQD, key_1ATD, value_1ATD, packing)
    contexts, first_query, first_key = [], 0, 0
    for length, sentences in packing.runs:
        queries = packing.num_narrow or length
        query, key, value = (
            x_1AQD[0, :, first : first + sentences * each].unflatten(1, (sentences, each)).transpose(0, 1)
            for x_1AQD, first, each in (
                (query_1AQD, first_query, queries),
                (key_1ATD, first_key, length),
                (value_1ATD, first_key, length),
            )
        )
        context = nn.functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        contexts.append(context.transpose(1, 2).flatten(0, 1))
        first_query, first_key = first_query + sentences * queries, first_key + sentences * length
    return torch.cat(contexts).unsqueeze(0)


def varlen_attention(
    query_1AQD: torch.Tensor, key_1ATD: torch.Tensor, value_1ATD: torch.Tensor, packing: Packing
) -> torch.Tensor:
    """``packed_attention`` by torch's variable-length kernel."""
    assert varlen_attn is not None
    # Under autocast rope leaves fp32 behind, which the kernel does not take.
    query, key, value = (x[0].transpose(0, 1).to(value_1ATD.dtype) for x in (query_1AQD, key_1ATD, value_1ATD))
    longest, query_ends = packing.runs[-1][0], packing.ends
    if packing.num_narrow is not None:
        end = len(packing.ends) * packing.num_narrow
        query_ends = torch.arange(0, end, packing.num_narrow, dtype=torch.int32, device=query.device)
    context = varlen_attn(query, key, value, query_ends, packing.ends, packing.num_narrow or longest, longest)
    assert isinstance(context, torch.Tensor)
    return context.unsqueeze(0)


def varlen_kernel_takes(dtype: torch.dtype, head_dim: int, capability: tuple[int, int]) -> bool:
    """Whether torch's variable-length kernel computes heads of this size and type on a GPU of this capability."""
    is_half = dtype in (torch.float16, torch.bfloat16)
    return varlen_attn is not None and is_half and capability >= (8, 0) and head_dim % 8 == 0 and head_dim <= 256


def folded_attention(
    query_BAPD: torch.Tensor,
    state_BSH: torch.Tensor,
    key: nn.Linear,
    value: nn.Linear,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention to ``state_BSH`` whose keys and values are never formed. Returns [B, P, A, D] and [B, A, P, S].

    A score is q (W_K h + b_K) = (W_K^T q) h + q b_K, and an output sum_s p_s (W_V h_s + b_V) =
    W_V (sum_s p_s h_s) + b_V sum_s p_s, head by head: two products with each narrow position instead of
    two with each position of the sentence.
    """
    batch, heads, rows, head_dim = query_BAPD.shape
    key_ADH, value_ADH = (linear.weight.unflatten(0, (heads, head_dim)) for linear in (key, value))
    query_BAPD = query_BAPD * scaling
    query_AQH = query_BAPD.transpose(0, 1).flatten(1, 2) @ key_ADH
    query_BAPH = query_AQH.unflatten(1, (batch, rows)).transpose(0, 1)
    scores_BAPS = (query_BAPH.flatten(1, 2) @ state_BSH.transpose(1, 2)).unflatten(1, (heads, rows))
    if key.bias is not None:
        scores_BAPS = scores_BAPS + query_BAPD @ key.bias.view(heads, head_dim, 1)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores_BAPS = scores_BAPS.masked_fill(~attention_mask, torch.finfo(scores_BAPS.dtype).min)
    elif attention_mask is not None:
        scores_BAPS = scores_BAPS + attention_mask
    weights_BAPS = nn.functional.dropout(scores_BAPS.softmax(-1), p=dropout, training=dropout > 0)
    context_BAPH = (weights_BAPS.flatten(1, 2) @ state_BSH).unflatten(1, (heads, rows))
    context_AQD = context_BAPH.transpose(0, 1).flatten(1, 2) @ value_ADH.transpose(1, 2)
    context_BAPD = context_AQD.unflatten(1, (batch, rows)).transpose(0, 1)
    if value.bias is not None:
        context_BAPD = context_BAPD + weights_BAPS.sum(-1, keepdim=True) * value.bias.view(heads, 1, head_dim)
    return context_BAPD.transpose(1, 2), weights_BAPS


def folding_pays(config: NarrowBertConfig, num_narrow: int, length: int) -> bool:
    """Whether ``num_narrow`` folded positions of a sentence take fewer FLOPs than the keys and values of all positions.

    Multiply-adds of a sentence, in units of hidden size: each owner of keys and values projects S
    positions twice, 2 S H, and each narrow attention compares and adds up heads, 2 P S; folded, each
    narrow attention projects P positions twice, 2 P H, and compares and adds up whole states, 2 A P S. With 12
    heads of 64 and keys and values in every layer, up to 45 positions are folded at 128 positions, 61 at 512.
    """
    attentions = sum("s" in sublayers for sublayers in config.narrow_layers)
    formed = len(config.narrow_kv_owners) * length * config.hidden_size + attentions * num_narrow * length
    folded = attentions * num_narrow * (config.hidden_size + config.num_attention_heads * length)
    return folded < formed


def is_plain(linear: nn.Module, size: int, device: torch.device) -> bool:
    """Whether ``linear`` computes what its weight says, [size, size] on ``device``, and nothing more.

    Otherwise only calling it is right. Adapters and quantisation replace the class, or put a tensor class of their
    own into the weight; ZeRO-3 and FSDP split it; offloading leaves it on the device meta and wraps ``forward``.
    """
    if type(linear) is not nn.Linear or "forward" in vars(linear):
        return False
    if linear._forward_hooks or linear._forward_pre_hooks or linear._backward_hooks or linear._backward_pre_hooks:
        return False
    weight = linear.weight
    is_wrapper = hasattr(weight, "__tensor_flatten__")  # torch's protocol of classes that keep other tensors inside
    return not is_wrapper and tuple(weight.shape) == (size, size) and weight.device == device


class NarrowBertSelfAttention(nn.Module):
    """Multi-head attention that may have fewer queries than keys and values."""

    # Read by transformers' SDPA function, which otherwise takes an attention without mask as causal.
    is_causal = False

    def __init__(self, config: NarrowBertConfig, has_key_value: bool = True) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=config.bias)
        if has_key_value:
            self.key = nn.Linear(config.hidden_size, config.hidden_size, bias=config.bias)
            self.value = nn.Linear(config.hidden_size, config.hidden_size, bias=config.bias)

    def key_value(self, state_BSH: torch.Tensor, by: Rotation | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of ``state_BSH``, each [B, A, S, D]."""
        return rotate(self._split_heads(self.key(state_BSH)), by), self._split_heads(self.value(state_BSH))

    def can_fold(self, device: torch.device) -> bool:
        """Whether keys and values are what the weights say."""
        return all(is_plain(linear, self.config.hidden_size, device) for linear in (self.key, self.value))

    def forward(
        self,
        hidden_BPH: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        by: Rotation | None,
        folded_into: "NarrowBertSelfAttention | None" = None,
        packing: Packing | None = None,
        implementation: str | None = None,
        window: torch.Tensor | None = None,
        **kwargs: Unpack[OutputOptions],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend to ``key`` and ``value`` [B, A, S, D], or, given ``folded_into``, to the state [B, S, H] in ``key``.

        Args:
            folded_into: whose keys and values of that state are meant.
            packing: the batch is packed; there is no mask then.
            implementation: of attention, instead of the configuration's.
            window: what ``window_bias`` gives; there is no mask then.
        """
        query_BAPD = rotate(self._split_heads(self.query(hidden_BPH)), by)
        scaling = self.head_dim**-0.5
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        weights_BAPS = None
        if folded_into is not None:
            context_BPAD, weights_BAPS = folded_attention(
                query_BAPD, key, folded_into.key, folded_into.value, attention_mask, scaling, dropout
            )
        elif window is not None:
            context_BPAD = windowed_attention(query_BAPD, key, value, window.to(query_BAPD), dropout)
        elif packing is not None:
            context_BPAD = packed_attention(query_BAPD, key, value, packing, dropout)
        else:
            attention: Callable[..., tuple[torch.Tensor, torch.Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
                implementation or self.config._attn_implementation or "eager", eager_attention
            )
            context_BPAD, weights_BAPS = attention(
                self, query_BAPD, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
            )
        return context_BPAD.flatten(2), weights_BAPS

    def _split_heads(self, projected: torch.Tensor) -> torch.Tensor:
        return projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class NarrowBertSublayerOutput(nn.Module):
    """What ends every sublayer: projection, dropout, residual; and its norm, before it or after the sum."""

    def __init__(self, config: NarrowBertConfig, input_size: int) -> None:
        super().__init__()
        self.is_pre_norm = config.normalization == "pre"
        self.dense = nn.Linear(input_size, config.hidden_size, bias=config.bias)
        self.LayerNorm = build_norm(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def sublayer_input(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the sublayer computes on."""
        return self.LayerNorm(hidden) if self.is_pre_norm else hidden

    def forward(self, inner: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        total = self.dropout(self.dense(inner)) + residual
        return total if self.is_pre_norm else self.LayerNorm(total)


class NarrowBertAttention(nn.Module):
    """One ``s`` of the layout. Keys and values are those it is given, or those of its own input."""

    def __init__(self, config: NarrowBertConfig, has_key_value: bool) -> None:
        super().__init__()
        self.self = NarrowBertSelfAttention(config, has_key_value)
        self.output = NarrowBertSublayerOutput(config, config.hidden_size)

    def forward(
        self,
        hidden_BPH: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        by: Rotation | None,
        **kwargs: Unpack[OutputOptions],
    ) -> torch.Tensor:
        input_BPH = self.output.sublayer_input(hidden_BPH)
        if key is None or value is None:
            key, value = self.self.key_value(input_BPH, by)
        context_BPH, _ = self.self(input_BPH, key, value, attention_mask, by, **kwargs)
        return self.output(context_BPH, hidden_BPH)


class NarrowBertIntermediate(nn.Module):
    """First half of one ``f`` of the layout."""

    def __init__(self, config: NarrowBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.bias)
        self.gate = None
        if config.hidden_act in GATED:
            self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.bias)
        self.activation = ACT2FN[GATED.get(config.hidden_act, config.hidden_act)]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.gate is None:
            return self.activation(self.dense(hidden))
        return self.activation(self.gate(hidden)) * self.dense(hidden)


class NarrowBertLayer(GradientCheckpointingLayer):
    """``"sf"`` or ``"wf"``, or a sublayer alone."""

    def __init__(self, config: NarrowBertConfig, sublayers: str, has_key_value: bool) -> None:
        super().__init__()
        self.is_local = "w" in sublayers
        has_attention = not set(ATTENTIONS).isdisjoint(sublayers)
        self.attention = NarrowBertAttention(config, has_key_value) if has_attention else None
        self.intermediate = NarrowBertIntermediate(config) if "f" in sublayers else None
        self.output = NarrowBertSublayerOutput(config, config.intermediate_size) if "f" in sublayers else None

    def forward(
        self,
        hidden_BPH: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        by: Rotation | None,
        **kwargs: Unpack[OutputOptions],
    ) -> torch.Tensor:
        if self.attention is not None:
            hidden_BPH = self.attention(hidden_BPH, key, value, attention_mask, by, **kwargs)
        if self.intermediate is not None and self.output is not None:
            hidden_BPH = self.output(self.intermediate(self.output.sublayer_input(hidden_BPH)), hidden_BPH)
        return hidden_BPH


class NarrowBertEncoder(nn.Module):
    """The layers of one side of the narrowing point; ``kv_owners`` are those with keys and values of their own.

    ``fold`` may be set on the narrow side: True and False fold always and never, None where it pays.
    """

    fold: bool | None = None

    def __init__(self, config: NarrowBertConfig, layers: list[str], kv_owners: Collection[int]) -> None:
        super().__init__()
        self.kv_owners = kv_owners
        self.layer = nn.ModuleList(
            [NarrowBertLayer(config, sublayers, number in kv_owners) for number, sublayers in enumerate(layers)]
        )

    def forward(
        self,
        hidden_BPH: torch.Tensor,
        frozen_BSH: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        by: Rotation | None,
        frozen_by: Rotation | None,
        folds: bool = False,
        local: Local | None = None,
        **kwargs: Unpack[OutputOptions],
    ) -> torch.Tensor:
        """Keys and values come from ``frozen_BSH``, or from the running state where that is None.

        ``local`` is what the layers of a ``w`` take instead of the mask and the angles.

        The result is on the device of ``hidden_BPH``, wherever the layers are.
        """
        device = hidden_BPH.device
        key, value, folded_into = None, None, None
        for number, layer in enumerate(self.layer):
            assert isinstance(layer, NarrowBertLayer)
            if frozen_BSH is not None and number in self.kv_owners:
                assert layer.attention is not None
                if folds:
                    key, value, folded_into = frozen_BSH, frozen_BSH, layer.attention.self
                else:
                    key, value = layer.attention.self.key_value(frozen_BSH, frozen_by)
            # All positional: gradient checkpointing hands tensors on by position.
            if layer.is_local and local is not None:
                hidden_BPH = layer(hidden_BPH, None, None, local.mask, local.by, window=local.window, **kwargs)
            else:
                hidden_BPH = layer(hidden_BPH, key, value, attention_mask, by, folded_into=folded_into, **kwargs)
        return hidden_BPH.to(device)

    def leave_out_first_norm(self) -> None:
        """For pre-norm, whose first sublayer then reads its input as it is."""
        first = self.layer[0]
        assert isinstance(first, NarrowBertLayer)
        output = first.output if first.attention is None else first.attention.output
        assert output is not None
        output.LayerNorm = nn.Identity()

    def folds(self, config: NarrowBertConfig, num_narrow: int, state_BSH: torch.Tensor) -> bool:
        """Whether the narrow layers fold ``num_narrow`` positions of each sentence of ``state_BSH``.

        Never with rope, which turns a key by its position after its projection.
        """
        if self.fold is False or config.position_embedding_type == "rope":
            return False
        attentions = [layer.attention for layer in self.layer if isinstance(layer, NarrowBertLayer)]
        if not all(attentions[number].self.can_fold(state_BSH.device) for number in self.kv_owners):  # pyright: ignore[reportOptionalMemberAccess]
            return False
        return self.fold or folding_pays(config, num_narrow, state_BSH.shape[1])


class NarrowBertHeadTransform(nn.Module):
    """Dense, activation, norm."""

    def __init__(self, config: NarrowBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=config.bias)
        self.activation = ACT2FN["gelu" if config.hidden_act in GATED else config.hidden_act]
        self.LayerNorm = build_norm(config)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.activation(self.dense(hidden)))


class NarrowBertPredictionHead(nn.Module):
    """Scores over the vocabulary; the decoder's weight is the word embedding, its bias is ``bias``."""

    def __init__(self, config: NarrowBertConfig) -> None:
        super().__init__()
        self.transform = NarrowBertHeadTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.transform(hidden))


class NarrowBertHead(nn.Module):
    """Holds the head under BERT's parameter names, ``cls.predictions.*``."""

    def __init__(self, config: NarrowBertConfig) -> None:
        super().__init__()
        self.predictions = NarrowBertPredictionHead(config)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.predictions(hidden)


class NarrowBertPooler(nn.Module):
    """Dense and tanh, of the [CLS] row."""

    def __init__(self, config: NarrowBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=config.bias)

    def forward(self, cls_BH: torch.Tensor) -> torch.Tensor:
        return self.dense(cls_BH).tanh()


class NarrowBertPreTrainedModel(PreTrainedModel):
    """Initialisation and what transformers needs to know about the classes below."""

    config: NarrowBertConfig
    config_class = NarrowBertConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    # Left of ``:`` alone. transformers drops padding by taking the last rows of the mask for the queries,
    # which is wrong when the queries are P chosen positions: those take SDPA.
    _supports_flash_attn = True
    # Tells transformers' Trainer whether forward() divides by num_items_in_batch itself.
    accepts_loss_kwargs = False
    _new_parts: tuple[str, ...] = ()
    """Parts that a pretrained checkpoint does not have, by the beginning of their parameters' names."""
    # transformers declares these as attributes of the instance, so they cannot be ClassVar.
    _no_split_modules = ["NarrowBertEmbeddings", "NarrowBertLayer"]  # noqa: RUF012
    _can_record_outputs: dict | None = {  # noqa: RUF012
        "hidden_states": NarrowBertLayer,
        "attentions": NarrowBertSelfAttention,
    }

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """transformers' own, which refuses a checkpoint that lacks tensors instead of filling them at random.

        Only what a pretrained encoder cannot have may be missing, and only all of it: the pooler and the
        classifier of a model that is to be fine-tuned.

        Raises:
            ValueError: a tensor is missing.
        """
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        missing = set(info["missing_keys"]) - {key[0] for key in info["mismatched_keys"]}
        new = {name for name in model.state_dict() if name.startswith(cls._new_parts)}
        refused = sorted(missing if missing & new != new else missing - new)
        if refused:
            raise ValueError(f"the checkpoint lacks {len(refused)} tensors of {cls.__name__}: {', '.join(refused)}")
        return (model, info) if output_loading_info else model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, NarrowBertPredictionHead):
            init.zeros_(module.bias)


class NarrowBertModel(NarrowBertPreTrainedModel):
    """The encoder. Set ``unpad`` to False to compute padding as well."""

    unpad = True
    _keys_to_ignore_on_load_unexpected = [r"^(bert\.)?pooler\.", r"^cls\."]  # noqa: RUF012

    def __init__(self, config: NarrowBertConfig, add_pooling_layer: bool = False) -> None:
        super().__init__(config)
        self.embeddings = NarrowBertEmbeddings(config)
        self.encoder = NarrowBertEncoder(config, config.full_layers, range(len(config.full_layers)))
        self.encoder_narrow = NarrowBertEncoder(config, config.narrow_layers, config.narrow_kv_owners)
        if config.skip_first_norm:
            self.encoder.leave_out_first_norm()
        is_pre_norm = config.normalization == "pre"
        self.frozen_norm = build_norm(config) if is_pre_norm and config.narrow_kv_owners else None
        self.final_norm = build_norm(config) if is_pre_norm else None
        self.pooler = NarrowBertPooler(config) if add_pooling_layer else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """transformers' own, but a new pooler is the same every time, whatever the seed.

        Adapters (peft) save the classifier and take all else from the export, which has no pooler: it has to come
        back as it was.
        """
        super()._init_weights(module)
        if self.pooler is not None and module is self.pooler.dense:
            normal = torch.empty(self.pooler.dense.weight.shape, dtype=torch.float32, device="cpu")
            normal.normal_(std=self.config.initializer_range, generator=torch.Generator("cpu").manual_seed(0))
            init.copy_(self.pooler.dense.weight, normal)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        assert isinstance(value, nn.Embedding)
        self.embeddings.word_embeddings = value

    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        narrow_positions: torch.Tensor | None = None,
        **kwargs: Unpack[OutputOptions],
    ) -> BaseModelOutputWithPooling:
        """Encode the narrow positions.

        Args:
            input_ids: [B, S]; or give inputs_embeds, [B, S, H].
            attention_mask: [B, S], 1 for real tokens, 0 for padding.
            narrow_positions: [B, P], the positions to compute, in any order. Rows with fewer than P
                are filled up with any valid position, whose result is then to be ignored. Default:
                every position, P = S.

        Returns:
            ``last_hidden_state`` [B, P, H]; what it holds at padding has no meaning. ``pooler_output``
            [B, H], of the first of these positions, where the model has a pooler. With
            ``output_hidden_states`` the embeddings and the output of every layer: [B, S, H] left of
            ``:``, [B, P, H] right of it, before any final norm. With ``output_attentions`` (eager
            attention only) [B, A, S, S] and [B, A, P, S].

        Raises:
            ValueError: both or neither of input_ids and inputs_embeds, an attention mask that is not
                [B, S], narrow positions that are not [B, P], an input longer than the model, attentions
                of an implementation that does not give them.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        is_captured = self._check_options(kwargs)
        hidden_BSH = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)
        if attention_mask is not None and attention_mask.shape != hidden_BSH.shape[:2]:
            raise ValueError(
                f"attention_mask has shape {list(attention_mask.shape)}, expected {list(hidden_BSH.shape[:2])}"
            )
        if position_ids is None:
            position_ids = torch.arange(hidden_BSH.shape[1], device=hidden_BSH.device).unsqueeze(0)
        packing = None
        if attention_mask is not None and not is_captured and self._can_pack(hidden_BSH):
            packing = pack(attention_mask)
        if packing is None:
            narrow_BPH = self._encode(hidden_BSH, attention_mask, position_ids, narrow_positions, **kwargs)
        else:
            narrow_BPH = self._encode_packed(
                hidden_BSH, attention_mask, position_ids, narrow_positions, packing, **kwargs
            )
        if self.final_norm is not None:
            narrow_BPH = self.final_norm(narrow_BPH).to(hidden_BSH.device)
        return BaseModelOutputWithPooling(
            last_hidden_state=narrow_BPH, pooler_output=None if self.pooler is None else self.pooler(narrow_BPH[:, 0])
        )

    def cls_states(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embeddings of texts by [CLS], [B, H]: its last hidden state. Right of ``:`` nothing else is computed.

        [CLS] is the first position that is no padding. Arguments are those of ``forward``. An export with ``--pooling
        cls`` tells sentence-transformers to call this.

        Raises:
            ValueError: what ``forward`` refuses.
        """
        inputs = input_ids if inputs_embeds is None else inputs_embeds
        narrow_positions = None if inputs is None else cls_positions(inputs, attention_mask)
        outputs = self(
            input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, position_ids=position_ids,
            inputs_embeds=inputs_embeds, narrow_positions=narrow_positions, return_dict=True,
        )  # fmt: skip
        return outputs.last_hidden_state[:, 0]

    def _check_options(self, kwargs: OutputOptions) -> bool:
        """Refuse what cannot be given; is any layer's output asked for?"""
        captured = {
            name: kwargs.get(name, getattr(self.config, name)) for name in ("output_attentions", "output_hidden_states")
        }
        if captured["output_attentions"] and self.config._attn_implementation != "eager":
            raise ValueError("output_attentions needs eager attention: model.set_attn_implementation('eager')")
        if is_flash_attention_requested(self.config) and self.config.position_embedding_type == "alibi":
            raise ValueError("flash attention has no place for alibi: use attn_implementation='sdpa'")
        return any(captured.values())

    def _can_pack(self, hidden_BSH: torch.Tensor) -> bool:
        """Packed shapes depend on the data, so nothing that records a graph may meet them."""
        is_recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        is_fused = self.config._attn_implementation == "sdpa" or is_flash_attention_requested(self.config)
        if not self.unpad or is_recorded or not is_fused or self.config.position_embedding_type == "alibi":
            return False
        if not hidden_BSH.is_cuda:
            return True
        dtype = hidden_BSH.dtype
        if torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
        capability = torch.cuda.get_device_capability(hidden_BSH.device)
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        has_dropout = self.training and self.config.attention_probs_dropout_prob > 0
        is_recorded = torch.cuda.is_current_stream_capturing()
        return varlen_kernel_takes(dtype, head_dim, capability) and not has_dropout and not is_recorded

    def _encode(
        self,
        hidden_BSH: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor,
        narrow_positions: torch.Tensor | None,
        **kwargs: Unpack[OutputOptions],
    ) -> torch.Tensor:
        """Both sides of the narrowing point over a rectangle: [B, P, H]."""
        by = rotation(self.config, position_ids, hidden_BSH.dtype)
        mask = create_bidirectional_mask(self.config, hidden_BSH, attention_mask)
        mask = add_alibi(self.config, mask, position_ids, position_ids, hidden_BSH.dtype)
        local = self._local(hidden_BSH, attention_mask, position_ids, mask)
        hidden_BSH = self.encoder(hidden_BSH, None, mask, by, None, local=local, **kwargs)
        return self._encode_narrow(hidden_BSH, attention_mask, position_ids, narrow_positions, **kwargs)

    def _local(
        self,
        hidden_BSH: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> Local | None:
        """For the layers of a ``w`` over a rectangle whose other layers take ``mask``."""
        if not any("w" in sublayers for sublayers in self.config.full_layers):
            return None
        by = rotation(self.config, position_ids, hidden_BSH.dtype, is_local=True)
        # The number of blocks depends on the length, which a recorded graph leaves open; eager attention gives weights.
        is_recorded = torch.compiler.is_exporting() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        if is_recorded or self.config._attn_implementation == "eager":
            return Local(None, add_window(self.config, mask, hidden_BSH), by)
        places = torch.arange(hidden_BSH.shape[1], device=hidden_BSH.device).unsqueeze(0)
        real_BS = None if attention_mask is None else attention_mask != 0
        return Local(window_bias(self.config, places, real_BS, None, hidden_BSH.dtype), None, by)

    def _encode_narrow(
        self,
        hidden_BSH: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor,
        narrow_positions: torch.Tensor | None,
        **kwargs: Unpack[OutputOptions],
    ) -> torch.Tensor:
        """The side right of ``:``, over a rectangle."""
        dtype = hidden_BSH.dtype
        narrow_BPH, places = hidden_BSH, position_ids
        if narrow_positions is not None:
            narrow_BPH = gather_positions(hidden_BSH, narrow_positions)
            places = position_ids.expand(hidden_BSH.shape[0], -1).gather(1, narrow_positions)
        frozen_BSH = hidden_BSH if self.frozen_norm is None else self.frozen_norm(hidden_BSH)
        implementation = None
        if is_flash_attention_requested(self.config):
            implementation = "sdpa"
            mask = None if attention_mask is None else (attention_mask != 0)[:, None, None]
        else:
            mask = create_bidirectional_mask(self.config, narrow_BPH, attention_mask, hidden_BSH)
        mask = add_alibi(self.config, mask, places, position_ids, dtype)
        by, frozen_by = (rotation(self.config, x, dtype) for x in (places, position_ids))
        folds = self.encoder_narrow.folds(self.config, narrow_BPH.shape[1], hidden_BSH)
        return self.encoder_narrow(
            narrow_BPH, frozen_BSH, mask, by, frozen_by, folds, implementation=implementation, **kwargs
        )

    def _encode_packed(
        self,
        hidden_BSH: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor,
        narrow_positions: torch.Tensor | None,
        packing: Packing,
        **kwargs: Unpack[OutputOptions],
    ) -> torch.Tensor:
        """``_encode`` over the real tokens alone."""
        batch, length = hidden_BSH.shape[:2]
        places_BS = position_ids.expand(batch, -1)
        places_1T = places_BS.flatten()[packing.tokens_T].unsqueeze(0)
        by = rotation(self.config, places_1T, hidden_BSH.dtype)
        hidden_1TH = hidden_BSH.flatten(0, 1)[packing.tokens_T].unsqueeze(0)
        local = None
        if any("w" in sublayers for sublayers in self.config.full_layers):
            rows_1T, columns_1T = (packing.tokens_T // length)[None], (packing.tokens_T % length)[None]
            window = window_bias(self.config, columns_1T, None, rows_1T, hidden_BSH.dtype)
            local = Local(window, None, rotation(self.config, places_1T, hidden_BSH.dtype, is_local=True))
        hidden_1TH = self.encoder(hidden_1TH, None, None, by, None, packing=packing, local=local, **kwargs)
        num_narrow = length if narrow_positions is None else narrow_positions.shape[-1]
        if self.encoder_narrow.folds(self.config, num_narrow, hidden_BSH):
            # Nothing is projected there, so padding costs next to nothing.
            hidden_BSH = unpack(hidden_1TH, packing, batch, length)
            return self._encode_narrow(hidden_BSH, attention_mask, position_ids, narrow_positions, **kwargs)
        frozen_1TH = hidden_1TH if self.frozen_norm is None else self.frozen_norm(hidden_1TH)
        if narrow_positions is None:
            hidden_1TH = self.encoder_narrow(hidden_1TH, frozen_1TH, None, by, by, packing=packing, **kwargs)
            return unpack(hidden_1TH, packing, batch, length)
        order_B = packing.order_B
        narrow_BPH = gather_positions(unpack(hidden_1TH, packing, batch, length), narrow_positions)[order_B]
        places_BP = places_BS.gather(1, narrow_positions)[order_B]
        narrow_by = rotation(self.config, places_BP.flatten().unsqueeze(0), hidden_1TH.dtype)
        narrow_1QH = self.encoder_narrow(
            narrow_BPH.flatten(0, 1).unsqueeze(0), frozen_1TH, None, narrow_by, by,
            packing=packing._replace(num_narrow=num_narrow), **kwargs,
        )  # fmt: skip
        return narrow_1QH[0].unflatten(0, (batch, num_narrow))[order_B.argsort()]


class NarrowBertTokenModel(NarrowBertPreTrainedModel):
    """What scores single positions: the masked-LM model and the tagger."""

    bert: NarrowBertModel
    accepts_loss_kwargs = True

    def score(
        self,
        head: nn.Module,
        computed_BS: torch.Tensor | None,
        labels: torch.Tensor | None,
        narrow_positions: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | int | None,
        not_computed: float = 0.0,
        **inputs: Any,
    ) -> tuple[torch.Tensor | None, torch.Tensor, BaseModelOutputWithPooling]:
        """Loss, logits and the encoder's outputs.

        Args:
            head: of single positions.
            computed_BS: bool, the positions to compute; None for those of ``narrow_positions`` or, if that is
                None, all.
            not_computed: the logits of other positions.

        Returns:
            ``logits`` are [B, P, ...] with narrow_positions, otherwise [B, S, ...] with ``not_computed`` where
            ``computed_BS`` is False.

        Raises:
            ValueError: labels of another shape.
        """
        real_BP = None
        if computed_BS is not None:
            narrow_positions, real_BP = pad_positions(computed_BS)
        outputs = self.bert(narrow_positions=narrow_positions, return_dict=True, **inputs)
        hidden_BPH = outputs.last_hidden_state
        if computed_BS is None:
            logits = scored = head(hidden_BPH).to(hidden_BPH.device)
        else:
            # Padded slots end here: the head sees the chosen positions alone, in their order.
            scored = head(hidden_BPH[real_BP]).to(hidden_BPH.device)
            logits = scored.new_full((*computed_BS.shape, scored.shape[-1]), not_computed)
            logits[computed_BS] = scored
        loss = None
        if labels is not None:
            if labels.shape != logits.shape[:2]:
                raise ValueError(f"labels have shape {list(labels.shape)}, expected {list(logits.shape[:2])}")
            targets = labels if computed_BS is None else labels[computed_BS]
            loss = token_loss(scored, targets, num_items_in_batch)
        return loss, logits, outputs


class NarrowBertForMaskedLM(NarrowBertTokenModel):
    """The encoder with its masked-language-model head."""

    _tied_weights_keys: dict[str, str] = {  # noqa: RUF012
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }
    _keys_to_ignore_on_load_unexpected = [r"^bert\.pooler\."]  # noqa: RUF012

    def __init__(self, config: NarrowBertConfig) -> None:
        super().__init__(config)
        self.bert = NarrowBertModel(config)
        self.cls = NarrowBertHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.cls.predictions.decoder = new_embeddings
        self.cls.predictions.bias = new_embeddings.bias

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        narrow_positions: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[OutputOptions],
    ) -> MaskedLMOutput:
        """Predict the tokens at the narrow positions.

        Which positions those are: ``narrow_positions`` if given; else those whose label is not -100;
        else those that hold [MASK]; else (no [MASK] in the row, or inputs_embeds) all of them. In training
        without labels all are computed: a loss that is made outside (label smoothing) may want any of them.

        Args:
            labels: -100 where there is nothing to predict; [B, P] with narrow_positions, else [B, S].
            narrow_positions: [B, P], as for the base model.
            num_items_in_batch: What the sum of losses is divided by, where a batch is computed in
                parts. Default: the number of labels that are not -100, at least 1.

        Returns:
            ``logits`` [B, P, V] with narrow_positions. Otherwise [B, S, V], where **the positions that were
            not computed are zeros with labels, and NaN without**: a loss over them shall not look like one.
            Read the masked (or labelled) positions only, or ask for others by narrow_positions.
            ``loss`` is the mean over labels that are not -100.

        Raises:
            ValueError: labels of another shape, and what the base model refuses.
        """
        computed_BS = None if narrow_positions is not None else self._positions_to_compute(input_ids, labels)
        loss, logits, outputs = self.score(
            self.cls, computed_BS, labels, narrow_positions, num_items_in_batch,
            not_computed=0.0 if labels is not None else float("nan"), input_ids=input_ids,
            attention_mask=attention_mask, token_type_ids=token_type_ids, position_ids=position_ids,
            inputs_embeds=inputs_embeds, **kwargs,
        )  # fmt: skip
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def _positions_to_compute(
        self, input_ids_BS: torch.Tensor | None, labels_BS: torch.Tensor | None
    ) -> torch.Tensor | None:
        """[B, S] bool, or None for every position. A row's choice never depends on the other rows."""
        if labels_BS is not None:
            return labels_BS != IGNORE_INDEX
        if self.training or input_ids_BS is None or self.config.mask_token_id is None:
            return None
        masked_BS = input_ids_BS == self.config.mask_token_id
        return masked_BS | ~masked_BS.any(dim=1, keepdim=True)


class NarrowBertForTokenClassification(NarrowBertTokenModel):
    """The encoder with a linear classifier of single positions, for tagging."""

    _new_parts = ("classifier.",)
    _keys_to_ignore_on_load_unexpected = [r"^bert\.pooler\.", r"^cls\."]  # noqa: RUF012

    def __init__(self, config: NarrowBertConfig) -> None:
        super().__init__(config)
        self.num_labels: int = config.num_labels or 0
        self.bert = NarrowBertModel(config)
        self.dropout = nn.Dropout(config.head_dropout)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        narrow_positions: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[OutputOptions],
    ) -> TokenClassifierOutput:
        """Tag the narrow positions: those given, else those whose label is not -100, else all.

        The first sub-word of every word is all that a tagger needs; which those are, the tokenizer knows
        (``word_ids()``), so give them as narrow_positions.

        Args:
            labels: -100 where there is no label; [B, P] with narrow_positions, else [B, S].
            narrow_positions: [B, P], as for the base model.
            num_items_in_batch: as for the masked-LM model.

        Returns:
            ``logits`` [B, P, C] with narrow_positions, else [B, S, C], all zeros where labels are given
            and -100. ``loss`` is the mean over labels that are not -100.

        Raises:
            ValueError: labels of another shape, and what the base model refuses.
        """
        computed_BS = labels != IGNORE_INDEX if labels is not None and narrow_positions is None else None
        loss, logits, outputs = self.score(
            nn.Sequential(self.dropout, self.classifier), computed_BS, labels, narrow_positions, num_items_in_batch,
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids,
            position_ids=position_ids, inputs_embeds=inputs_embeds, **kwargs,
        )  # fmt: skip
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class NarrowBertForSequenceClassification(NarrowBertPreTrainedModel):
    """The encoder with BERT's pooler and a linear classifier, for one or two texts: labels, scores, numbers."""

    _new_parts = ("bert.pooler.", "classifier.")
    _keys_to_ignore_on_load_unexpected = [r"^cls\."]  # noqa: RUF012

    def __init__(self, config: NarrowBertConfig) -> None:
        super().__init__(config)
        self.num_labels: int = config.num_labels or 0
        self.bert = NarrowBertModel(config, add_pooling_layer=True)
        self.dropout = nn.Dropout(config.head_dropout)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        narrow_positions: torch.Tensor | None = None,
        **kwargs: Unpack[OutputOptions],
    ) -> SequenceClassifierOutput:
        """Classify each row by one position.

        Args:
            labels: [B] numbers of classes, or [B] or [B, C] floats for regression (one label, or
                ``config.problem_type``), or [B, C] zeros and ones as floats for several labels a row.
            narrow_positions: [B, P], of which the first counts. Default: [CLS], which is the first position
                that is no padding.

        Returns:
            ``logits`` [B, C], and with labels the ``loss``: mean cross-entropy, squared error, or binary
            cross-entropy.

        Raises:
            ValueError: what the base model refuses.
        """
        inputs = input_ids if inputs_embeds is None else inputs_embeds
        if narrow_positions is None and inputs is not None:
            narrow_positions = cls_positions(inputs, attention_mask)
        outputs = self.bert(
            input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, position_ids=position_ids,
            inputs_embeds=inputs_embeds, narrow_positions=narrow_positions, return_dict=True, **kwargs,
        )  # fmt: skip
        logits = self.classifier(self.dropout(outputs.pooler_output)).to(outputs.last_hidden_state.device)
        return SequenceClassifierOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        kind = self.config.problem_type
        if kind is None:
            several = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
            kind = "regression" if self.num_labels == 1 else several
        if kind == "regression":
            return nn.functional.mse_loss(logits.float().view(-1), labels.float().view(-1))
        if kind == "single_label_classification":
            return nn.functional.cross_entropy(logits.float(), labels.view(-1))
        return nn.functional.binary_cross_entropy_with_logits(logits.float(), labels.float())


class NarrowBertForQuestionAnswering(NarrowBertPreTrainedModel):
    """The encoder with a linear layer that scores every position as the start and the end of an answer."""

    _new_parts = ("qa_outputs.",)
    _keys_to_ignore_on_load_unexpected = [r"^bert\.pooler\.", r"^cls\."]  # noqa: RUF012

    def __init__(self, config: NarrowBertConfig) -> None:
        super().__init__(config)
        self.bert = NarrowBertModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        narrow_positions: torch.Tensor | None = None,
        **kwargs: Unpack[OutputOptions],
    ) -> QuestionAnsweringModelOutput:
        """Score spans.

        Args:
            start_positions, end_positions: [B], numbers of narrow positions (of positions by default). One that is
                outside of the row counts for nothing.
            narrow_positions: [B, P], as for the base model. Default: all, as any position may be the answer's.

        Returns:
            ``start_logits`` and ``end_logits`` [B, P], the lowest number at padding; with both labels the ``loss``,
            the mean of two cross-entropies.

        Raises:
            ValueError: what the base model refuses.
        """
        outputs = self.bert(
            input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, position_ids=position_ids,
            inputs_embeds=inputs_embeds, narrow_positions=narrow_positions, return_dict=True, **kwargs,
        )  # fmt: skip
        scores_BP2 = self.qa_outputs(outputs.last_hidden_state).to(outputs.last_hidden_state.device)
        if attention_mask is not None:  # padding is no answer, and takes no part in the loss
            real_BP = attention_mask != 0
            if narrow_positions is not None:
                real_BP = real_BP.gather(1, narrow_positions)
            scores_BP2 = scores_BP2.masked_fill(~real_BP.unsqueeze(-1), torch.finfo(scores_BP2.dtype).min)
        start_BP, end_BP = scores_BP2.unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            losses = []
            for scores_BP, targets_B in ((start_BP, start_positions.view(-1)), (end_BP, end_positions.view(-1))):
                is_outside_B = (targets_B < 0) | (targets_B >= scores_BP.shape[1])
                losses.append(token_loss(scores_BP, targets_B.masked_fill(is_outside_B, IGNORE_INDEX), None))
            loss = torch.stack(losses).mean()
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_BP,
            end_logits=end_BP,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def cls_positions(inputs: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """[B, 1], the first position of ``inputs`` [B, S, ...] that is no padding."""
    if attention_mask is None:
        return torch.zeros(inputs.shape[0], 1, dtype=torch.long, device=inputs.device)
    return attention_mask.int().argmax(dim=-1, keepdim=True)


def gather_positions(hidden_BSH: torch.Tensor, positions_BP: torch.Tensor) -> torch.Tensor:
    """``hidden_BSH`` at ``positions_BP``: [B, P, H].

    Raises:
        ValueError: positions that are not [B, P].
    """
    if positions_BP.dim() != 2 or positions_BP.shape[0] != hidden_BSH.shape[0]:
        raise ValueError(
            f"narrow_positions have shape {list(positions_BP.shape)}, expected [{hidden_BSH.shape[0]}, num_narrow]"
        )
    return hidden_BSH.gather(1, positions_BP.unsqueeze(-1).expand(-1, -1, hidden_BSH.shape[-1]))


def pad_positions(chosen_BS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The chosen positions of each row, ascending, as a rectangle.

    Returns:
        [B, P] positions and [B, P] bool, False for the slots that only fill up a row with fewer chosen
        positions than the fullest one. P is at least 1.
    """
    counts_B = chosen_BS.sum(dim=1)
    num_narrow = max(int(counts_B.max()), 1)
    # A stable sort puts the chosen positions first and keeps their order.
    positions_BP = chosen_BS.int().argsort(dim=1, descending=True, stable=True)[:, :num_narrow]
    slots_P = torch.arange(num_narrow, device=chosen_BS.device)
    return positions_BP, slots_P < counts_B.unsqueeze(1)


def token_loss(
    logits: torch.Tensor, targets: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
) -> torch.Tensor:
    """Cross-entropy of ``logits`` [..., V or C], summed over targets that are not -100, over their number.

    Computed in fp32. Without any target it is 0, so that a micro-batch without masks does no harm.
    """
    total = nn.functional.cross_entropy(
        logits.float().flatten(0, -2), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )
    if num_items_in_batch is None:
        num_items_in_batch = (targets != IGNORE_INDEX).sum().clamp(min=1)
    elif isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(total.device)
    return total / num_items_in_batch
