"""NarrowBERT for transformers (5.18 or newer). Self-contained: copied beside exported weights.

Source: Li, Keung, Cheng, Kasai, Smith, "NarrowBERT: Accelerating Masked Language Model Pretraining
and Inference", ACL 2023, arXiv 2301.04761.

The sublayers left of ``:`` in ``config.layout`` run on every position and end in the state h_K. Then
only the rows at the *narrow positions* go on: a narrow attention sublayer takes its queries from
them, its keys and values from h_K, which stays as it is; a narrow feed-forward sublayer runs on them
alone. Narrow rows never read each other, so a row's result does not depend on which other rows are
narrow.

Parameter names are BERT's, with the narrow layers under ``bert.encoder_narrow`` as in the authors'
release; the state dict of layout ``12sf`` has exactly the keys of ``BertForMaskedLM``.

Shapes: B batch, S sequence, N narrow rows, R computed rows of a whole batch, H hidden, V vocabulary,
A attention heads, D = H / A.
"""

from collections.abc import Callable
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


class NarrowBertEmbeddings(nn.Module):
    """Sum of word, position and segment embeddings, then LayerNorm and dropout."""

    def __init__(self, config: NarrowBertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids_BS: torch.Tensor | None,
        token_type_ids_BS: torch.Tensor | None,
        position_ids_BS: torch.Tensor | None,
        inputs_embeds_BSH: torch.Tensor | None,
    ) -> torch.Tensor:
        words_BSH = self.word_embeddings(input_ids_BS) if inputs_embeds_BSH is None else inputs_embeds_BSH
        length, device = words_BSH.shape[1], words_BSH.device
        if position_ids_BS is None:
            if length > self.position_embeddings.num_embeddings:
                raise ValueError(
                    f"the input has {length} positions, the model {self.position_embeddings.num_embeddings}: "
                    "truncate it (tokenizer(..., truncation=True))"
                )
            position_ids_BS = torch.arange(length, device=device).unsqueeze(0)
        if token_type_ids_BS is None:
            token_type_ids_BS = torch.zeros(words_BSH.shape[:2], dtype=torch.long, device=device)
        hidden_BSH = words_BSH + self.token_type_embeddings(token_type_ids_BS)
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

    def __init__(self, config: NarrowBertConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_BNH: torch.Tensor,
        key_value_BSH: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attention: Callable[..., tuple[torch.Tensor, torch.Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation or "eager", eager_attention
        )
        context_BNAD, weights_BANS = attention(
            self,
            self._split_heads(self.query(hidden_BNH)),
            self._split_heads(self.key(key_value_BSH)),
            self._split_heads(self.value(key_value_BSH)),
            attention_mask,
            scaling=self.head_dim**-0.5,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            **kwargs,
        )
        return context_BNAD.flatten(2), weights_BANS

    def _split_heads(self, projected: torch.Tensor) -> torch.Tensor:
        return projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class NarrowBertSublayerOutput(nn.Module):
    """What ends every sublayer: projection, dropout, residual, LayerNorm (post-LN, as BERT)."""

    def __init__(self, config: NarrowBertConfig, input_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(input_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, inner: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dropout(self.dense(inner)) + residual)


class NarrowBertAttention(nn.Module):
    """One ``s`` of the layout."""

    def __init__(self, config: NarrowBertConfig) -> None:
        super().__init__()
        self.self = NarrowBertSelfAttention(config)
        self.output = NarrowBertSublayerOutput(config, config.hidden_size)

    def forward(
        self,
        hidden_BNH: torch.Tensor,
        key_value_BSH: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        context_BNH, _ = self.self(hidden_BNH, key_value_BSH, attention_mask, **kwargs)
        return self.output(context_BNH, hidden_BNH)


class NarrowBertIntermediate(nn.Module):
    """First half of one ``f`` of the layout."""

    def __init__(self, config: NarrowBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.activation(self.dense(hidden))


class NarrowBertLayer(GradientCheckpointingLayer):
    """``"sf"``, or one of the two alone."""

    def __init__(self, config: NarrowBertConfig, sublayers: str) -> None:
        super().__init__()
        self.attention = NarrowBertAttention(config) if "s" in sublayers else None
        self.intermediate = NarrowBertIntermediate(config) if "f" in sublayers else None
        self.output = NarrowBertSublayerOutput(config, config.intermediate_size) if "f" in sublayers else None

    def forward(
        self,
        hidden_BNH: torch.Tensor,
        frozen_BSH: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        if self.attention is not None:
            key_value = hidden_BNH if frozen_BSH is None else frozen_BSH
            hidden_BNH = self.attention(hidden_BNH, key_value, attention_mask, **kwargs)
        if self.intermediate is not None and self.output is not None:
            hidden_BNH = self.output(self.intermediate(hidden_BNH), hidden_BNH)
        return hidden_BNH


class NarrowBertEncoder(nn.Module):
    """The layers of one side of the narrowing point."""

    def __init__(self, config: NarrowBertConfig, layers: list[str]) -> None:
        super().__init__()
        self.layer = nn.ModuleList([NarrowBertLayer(config, sublayers) for sublayers in layers])

    def forward(
        self,
        hidden_BNH: torch.Tensor,
        frozen_BSH: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Keys and values come from ``frozen_BSH``, or from the running state where that is None."""
        for layer in self.layer:
            # All positional: gradient checkpointing hands tensors on by position.
            hidden_BNH = layer(hidden_BNH, frozen_BSH, attention_mask, **kwargs)
        return hidden_BNH


class NarrowBertHeadTransform(nn.Module):
    """Dense, activation, LayerNorm."""

    def __init__(self, config: NarrowBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

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
        self.encoder = NarrowBertEncoder(config, config.full_layers)
        self.encoder_narrow = NarrowBertEncoder(config, config.narrow_layers)
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
            of every layer: [B, S, H] left of ``:``, [B, N, H] right of it. With ``output_attentions``
            (eager attention only) [B, A, S, S] and [B, A, N, S].

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
        full_mask = create_bidirectional_mask(self.config, hidden_BSH, attention_mask)
        hidden_BSH = self.encoder(hidden_BSH, None, full_mask, **kwargs)

        narrow_BNH = hidden_BSH if narrow_positions is None else gather_rows(hidden_BSH, narrow_positions)
        narrow_mask = create_bidirectional_mask(self.config, narrow_BNH, attention_mask, hidden_BSH)
        narrow_BNH = self.encoder_narrow(narrow_BNH, hidden_BSH, narrow_mask, **kwargs)
        return BaseModelOutput(last_hidden_state=narrow_BNH)


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
