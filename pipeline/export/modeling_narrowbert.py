"""NarrowBERT for transformers (5.18 or newer). Self-contained: copied beside exported weights.

Source: Li, Keung, Cheng, Kasai, Smith, "NarrowBERT: Accelerating Masked Language Model Pretraining
and Inference", ACL 2023, arXiv 2301.04761.

The sublayers left of ``:`` in ``config.layout`` run on every position and end in the state h_K. Then
only the rows at the *narrow positions* go on: a narrow attention sublayer takes its queries from
them, its keys and values from h_K, which stays as it is; a narrow feed-forward sublayer runs on them
alone. Narrow rows never read each other, so a row's result does not depend on which other rows are
narrow. Positions, where attention knows them (rope, alibi), are those of the whole row.

Parameter names are BERT's, with the narrow layers under ``bert.encoder_narrow`` as in the authors'
release; the state dict of layout ``12sf`` has exactly the keys of ``BertForMaskedLM``. Options that BERT
does not have add ``intermediate.gate`` (gated units), ``frozen_norm`` and ``final_norm`` (pre-norm); a
sublayer's norm is called ``output.LayerNorm`` wherever it stands.

Shapes: B batch, S sequence, N narrow rows, R computed rows of a whole batch, H hidden, V vocabulary,
A attention heads, D = H / A.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .configuration_narrowbert import NarrowBertConfig

IGNORE_INDEX = -100
GATED = {"geglu": "gelu", "swiglu": "silu"}

Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and signed sines of rope's angles, [B or 1, 1, positions, D]."""


def build_norm(config: NarrowBertConfig) -> nn.Module:
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.hidden_size, eps=config.layer_norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, bias=config.bias)


def rotation(config: NarrowBertConfig, positions: torch.Tensor, dtype: torch.dtype) -> Rotation | None:
    """Rope's angles of ``positions`` [B or 1, any number]; None for another kind of positions."""
    if config.position_embedding_type != "rope":
        return None
    head_dim = config.hidden_size // config.num_attention_heads
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions[:, None, :, None].float() * config.rope_theta**-exponents
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)


def rotate(x_BAND: torch.Tensor, by: Rotation | None) -> torch.Tensor:
    """Turn feature i together with feature i + D/2 by its position's angle."""
    if by is None:
        return x_BAND
    first, second = x_BAND.chunk(2, -1)
    return x_BAND * by[0] + torch.cat((second, first), -1) * by[1]


def add_alibi(
    config: NarrowBertConfig, mask: torch.Tensor | None, queries: torch.Tensor, keys: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor | None:
    """``mask`` (bool or added to the scores) joined with ALiBi's bias by distance, where the model has it.

    queries [B or 1, N] and keys [B or 1, S] are positions.
    """
    if config.position_embedding_type != "alibi":
        return mask
    heads = config.num_attention_heads
    power = 1 << (heads.bit_length() - 1)  # the largest power of two that is not above
    exponents = [8 * (i + 1) / power for i in range(power)] + [4 * (2 * i + 1) / power for i in range(heads - power)]
    slopes_A11 = 2.0 ** -torch.tensor(exponents, device=queries.device).view(-1, 1, 1)
    bias_BANS = -slopes_A11 * (queries[:, None, :, None] - keys[:, None, None, :]).abs()
    if mask is None:
        return bias_BANS.to(dtype)
    if mask.dtype == torch.bool:
        return bias_BANS.masked_fill(~mask, torch.finfo(dtype).min).to(dtype)
    return mask + bias_BANS.to(dtype)


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
    query_BAND: torch.Tensor,
    key_BASD: torch.Tensor,
    value_BASD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain operations, for ``output_attentions``. Returns [B, N, A, D] and [B, A, N, S]."""
    scores_BANS = query_BAND @ key_BASD.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores_BANS = scores_BANS + attention_mask
    weights_BANS = nn.functional.dropout(scores_BANS.softmax(dim=-1), p=dropout, training=module.training)
    return (weights_BANS @ value_BASD).transpose(1, 2), weights_BANS


class NarrowBertSelfAttention(nn.Module):
    """Multi-head attention whose queries may be fewer rows than its keys and values."""

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

    def forward(
        self,
        hidden_BNH: torch.Tensor,
        key_BASD: torch.Tensor,
        value_BASD: torch.Tensor,
        attention_mask: torch.Tensor | None,
        by: Rotation | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attention: Callable[..., tuple[torch.Tensor, torch.Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation or "eager", eager_attention
        )
        context_BNAD, weights_BANS = attention(
            self,
            rotate(self._split_heads(self.query(hidden_BNH)), by),
            key_BASD,
            value_BASD,
            attention_mask,
            scaling=self.head_dim**-0.5,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            **kwargs,
        )
        return context_BNAD.flatten(2), weights_BANS

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
        hidden_BNH: torch.Tensor,
        key_BASD: torch.Tensor | None,
        value_BASD: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        by: Rotation | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        input_BNH = self.output.sublayer_input(hidden_BNH)
        if key_BASD is None or value_BASD is None:
            key_BASD, value_BASD = self.self.key_value(input_BNH, by)
        context_BNH, _ = self.self(input_BNH, key_BASD, value_BASD, attention_mask, by, **kwargs)
        return self.output(context_BNH, hidden_BNH)


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
    """``"sf"``, or one of the two alone."""

    def __init__(self, config: NarrowBertConfig, sublayers: str, has_key_value: bool) -> None:
        super().__init__()
        self.attention = NarrowBertAttention(config, has_key_value) if "s" in sublayers else None
        self.intermediate = NarrowBertIntermediate(config) if "f" in sublayers else None
        self.output = NarrowBertSublayerOutput(config, config.intermediate_size) if "f" in sublayers else None

    def forward(
        self,
        hidden_BNH: torch.Tensor,
        key_BASD: torch.Tensor | None,
        value_BASD: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        by: Rotation | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        if self.attention is not None:
            hidden_BNH = self.attention(hidden_BNH, key_BASD, value_BASD, attention_mask, by, **kwargs)
        if self.intermediate is not None and self.output is not None:
            hidden_BNH = self.output(self.intermediate(self.output.sublayer_input(hidden_BNH)), hidden_BNH)
        return hidden_BNH


class NarrowBertEncoder(nn.Module):
    """The layers of one side of the narrowing point; ``kv_owners`` are those with keys and values of their own."""

    def __init__(self, config: NarrowBertConfig, layers: list[str], kv_owners: Collection[int]) -> None:
        super().__init__()
        self.kv_owners = kv_owners
        self.layer = nn.ModuleList(
            [NarrowBertLayer(config, sublayers, number in kv_owners) for number, sublayers in enumerate(layers)]
        )

    def forward(
        self,
        hidden_BNH: torch.Tensor,
        frozen_BSH: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        by: Rotation | None,
        frozen_by: Rotation | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Keys and values come from ``frozen_BSH``, or from the running state where that is None."""
        key_BASD, value_BASD = None, None
        for number, layer in enumerate(self.layer):
            assert isinstance(layer, NarrowBertLayer)
            if frozen_BSH is not None and number in self.kv_owners:
                assert layer.attention is not None
                key_BASD, value_BASD = layer.attention.self.key_value(frozen_BSH, frozen_by)
            # All positional: gradient checkpointing hands tensors on by position.
            hidden_BNH = layer(hidden_BNH, key_BASD, value_BASD, attention_mask, by, **kwargs)
        return hidden_BNH


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


class NarrowBertPreTrainedModel(PreTrainedModel):
    """Initialisation and what transformers needs to know about the classes below."""

    config: NarrowBertConfig
    config_class = NarrowBertConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    # Flash attention stays off: transformers drops padding by taking the last rows of the mask for
    # the queries, which is wrong when the queries are N chosen rows.
    _supports_sdpa = True
    # transformers declares these as attributes of the instance, so they cannot be ClassVar.
    _no_split_modules = ["NarrowBertEmbeddings", "NarrowBertLayer"]  # noqa: RUF012
    _can_record_outputs: dict | None = {  # noqa: RUF012
        "hidden_states": NarrowBertLayer,
        "attentions": NarrowBertSelfAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, NarrowBertPredictionHead):
            init.zeros_(module.bias)


class NarrowBertModel(NarrowBertPreTrainedModel):
    """The encoder."""

    def __init__(self, config: NarrowBertConfig) -> None:
        super().__init__(config)
        self.embeddings = NarrowBertEmbeddings(config)
        self.encoder = NarrowBertEncoder(config, config.full_layers, range(len(config.full_layers)))
        self.encoder_narrow = NarrowBertEncoder(config, config.narrow_layers, config.narrow_kv_owners)
        is_pre_norm = config.normalization == "pre"
        self.frozen_norm = build_norm(config) if is_pre_norm and config.narrow_kv_owners else None
        self.final_norm = build_norm(config) if is_pre_norm else None
        self.post_init()

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
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Encode the rows at the narrow positions.

        Args:
            input_ids: [B, S]; or give inputs_embeds, [B, S, H].
            attention_mask: [B, S], 1 for real tokens, 0 for padding.
            narrow_positions: [B, N], the positions to compute, in any order. Rows with fewer than N
                are filled up with any valid position, whose result is then to be ignored. Default:
                every position, N = S.

        Returns:
            ``last_hidden_state`` [B, N, H]. With ``output_hidden_states`` the embeddings and the output
            of every layer: [B, S, H] left of ``:``, [B, N, H] right of it, before any final norm. With
            ``output_attentions`` (eager attention only) [B, A, S, S] and [B, A, N, S].

        Raises:
            ValueError: both or neither of input_ids and inputs_embeds, an attention mask that is not
                [B, S], narrow positions that are not [B, N], an input longer than the model.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        hidden_BSH = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)
        if attention_mask is not None and attention_mask.shape != hidden_BSH.shape[:2]:
            raise ValueError(
                f"attention_mask has shape {list(attention_mask.shape)}, expected {list(hidden_BSH.shape[:2])}"
            )
        if position_ids is None:
            position_ids = torch.arange(hidden_BSH.shape[1], device=hidden_BSH.device).unsqueeze(0)
        by, dtype = rotation(self.config, position_ids, hidden_BSH.dtype), hidden_BSH.dtype
        mask = create_bidirectional_mask(self.config, hidden_BSH, attention_mask)
        mask = add_alibi(self.config, mask, position_ids, position_ids, dtype)
        hidden_BSH = self.encoder(hidden_BSH, None, mask, by, None, **kwargs)

        narrow_BNH, places = hidden_BSH, position_ids
        if narrow_positions is not None:
            narrow_BNH = gather_rows(hidden_BSH, narrow_positions)
            places = position_ids.expand(len(hidden_BSH), -1).gather(1, narrow_positions)
        frozen_BSH = hidden_BSH if self.frozen_norm is None else self.frozen_norm(hidden_BSH)
        mask = create_bidirectional_mask(self.config, narrow_BNH, attention_mask, hidden_BSH)
        mask = add_alibi(self.config, mask, places, position_ids, dtype)
        narrow_by = rotation(self.config, places, dtype)
        narrow_BNH = self.encoder_narrow(narrow_BNH, frozen_BSH, mask, narrow_by, by, **kwargs)
        return BaseModelOutput(last_hidden_state=narrow_BNH if self.final_norm is None else self.final_norm(narrow_BNH))


class NarrowBertForMaskedLM(NarrowBertPreTrainedModel):
    """The encoder with its masked-language-model head."""

    _tied_weights_keys: dict[str, str] = {  # noqa: RUF012
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }
    # Tells transformers' Trainer that forward() divides by num_items_in_batch itself.
    accepts_loss_kwargs = True

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
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """Predict the tokens at the narrow positions.

        Which positions those are: ``narrow_positions`` if given; else those whose label is not -100;
        else those that hold [MASK]; else (no [MASK] in the row, or inputs_embeds) all of them.

        Args:
            labels: -100 where there is nothing to predict; [B, N] with narrow_positions, else [B, S].
            narrow_positions: [B, N], as for the base model.
            num_items_in_batch: What the sum of losses is divided by, where a batch is computed in
                parts. Default: the number of labels that are not -100, at least 1.

        Returns:
            ``logits`` [B, N, V] with narrow_positions. Otherwise [B, S, V], where **the rows that were
            not computed are all zeros**: read the rows of the masked (or labelled) positions only, or
            ask for others by narrow_positions. ``loss`` is the mean over labels that are not -100.

        Raises:
            ValueError: labels of another shape, and what the base model refuses.
        """
        computed_BS = None
        if narrow_positions is None:
            computed_BS = self._positions_to_compute(input_ids, labels)
        real_BN = None
        if computed_BS is not None:
            narrow_positions, real_BN = pad_positions(computed_BS)
        outputs = self.bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            narrow_positions=narrow_positions,
            return_dict=True,
            **kwargs,
        )
        hidden_BNH = outputs.last_hidden_state
        if computed_BS is None:
            logits = scored = self.cls(hidden_BNH)
        else:
            # Padded slots end here: the head sees the R real rows, in the order of the positions.
            scored = self.cls(hidden_BNH[real_BN])
            logits = scored.new_zeros(*computed_BS.shape, scored.shape[-1])
            logits[computed_BS] = scored
        loss = None
        if labels is not None:
            if labels.shape != logits.shape[:2]:
                raise ValueError(f"labels have shape {list(labels.shape)}, expected {list(logits.shape[:2])}")
            targets = labels if computed_BS is None else labels[computed_BS]
            loss = masked_lm_loss(scored, targets, num_items_in_batch)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def _positions_to_compute(
        self, input_ids_BS: torch.Tensor | None, labels_BS: torch.Tensor | None
    ) -> torch.Tensor | None:
        """[B, S] bool, or None for every position. A row's choice never depends on the other rows."""
        if labels_BS is not None:
            return labels_BS != IGNORE_INDEX
        if input_ids_BS is None or self.config.mask_token_id is None:
            return None
        masked_BS = input_ids_BS == self.config.mask_token_id
        return masked_BS | ~masked_BS.any(dim=1, keepdim=True)


def gather_rows(hidden_BSH: torch.Tensor, positions_BN: torch.Tensor) -> torch.Tensor:
    """Rows of ``hidden_BSH`` at ``positions_BN``: [B, N, H].

    Raises:
        ValueError: positions that are not [B, N].
    """
    if positions_BN.dim() != 2 or positions_BN.shape[0] != hidden_BSH.shape[0]:
        raise ValueError(
            f"narrow_positions have shape {list(positions_BN.shape)}, expected [{hidden_BSH.shape[0]}, num_narrow]"
        )
    return hidden_BSH.gather(1, positions_BN.unsqueeze(-1).expand(-1, -1, hidden_BSH.shape[-1]))


def pad_positions(chosen_BS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The chosen positions of each row, ascending, as a rectangle.

    Returns:
        [B, N] positions and [B, N] bool, False for the slots that only fill up a row with fewer chosen
        positions than the fullest one. N is at least 1.
    """
    counts_B = chosen_BS.sum(dim=1)
    num_narrow = max(int(counts_B.max()), 1)
    # A stable sort puts the chosen positions first and keeps their order.
    positions_BN = chosen_BS.int().argsort(dim=1, descending=True, stable=True)[:, :num_narrow]
    slots_N = torch.arange(num_narrow, device=chosen_BS.device)
    return positions_BN, slots_N < counts_B.unsqueeze(1)


def masked_lm_loss(
    logits: torch.Tensor, targets: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
) -> torch.Tensor:
    """Cross-entropy [...] of ``logits`` [..., V], summed over targets that are not -100, over their number.

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
