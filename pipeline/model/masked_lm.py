"""The trained model: embeddings, encoder, masked-LM head on the narrow positions, loss sum.

Shape suffixes: B rows of a batch, S tokens of a row, P narrow positions of a row, H ``hidden_size``, V this
rank's share of the (padded) vocabulary.
"""

import typing

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.config import ModelConfig
from pipeline.model.encoder import Encoder
from pipeline.model.linear_and_norm import build_norm, column_linear, initializer
from pipeline.model.parameters import NUM_TOKEN_TYPES, has_position_embeddings
from pipeline.model.position import positions_in_document
from pipeline.parallel.layers import (
    Initializer,
    WordEmbedding,
    argmax,
    copy_to_tensor_parallel,
    cross_entropy,
    gather_from_tensor_parallel,
    is_padding_of_vocabulary,
    vocab_parallel_bias,
)


class MaskedLMOutput(typing.NamedTuple):
    """Sums over the real masked tokens of a micro-batch, ready to be added over ranks."""

    loss_sum: torch.Tensor
    """Cross-entropy in nats, fp32 scalar."""
    num_correct: torch.Tensor | None
    """How often the most probable token was the right one; None unless asked for."""
    logits: torch.Tensor | None = None
    """fp32, [B, P, this rank's share of the vocabulary], -inf where that is padding; None unless asked for."""


class Embeddings(nn.Module):
    """Word + absolute position (unless attention knows positions) + segment, norm, dropout."""

    def __init__(self, config: ModelConfig, vocab_size: int, padded_size: int, init_method: Initializer) -> None:
        super().__init__()
        self.word_embeddings = WordEmbedding(vocab_size, config.hidden_size, init_method, padded_size)
        self.position_embeddings = None
        if has_position_embeddings(config):
            self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
            init_method(self.position_embeddings.weight)
        self.token_type_embeddings = nn.Embedding(NUM_TOKEN_TYPES, config.hidden_size)
        init_method(self.token_type_embeddings.weight)
        self.norm = build_norm(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, input_ids_BS: torch.Tensor, document_ids_BS: torch.Tensor | None = None) -> torch.Tensor:
        """[B, S] -> [B, S, H]; with ``document_ids`` absolute positions start from 0 in each document."""
        added = self.token_type_embeddings.weight[0]
        if self.position_embeddings is not None:
            places = self.position_embeddings.weight[: input_ids_BS.shape[1]]
            if document_ids_BS is not None:
                places = F.embedding(positions_in_document(document_ids_BS), places)
            added = places + added
        return self.dropout(self.norm(self.word_embeddings(input_ids_BS) + added))


class MaskedLMHead(nn.Module):
    """Dense, GELU, norm; the decoder is the word embedding (tied) plus its own bias."""

    padding_V: torch.Tensor | None

    def __init__(self, config: ModelConfig, vocab_size: int, padded_size: int, init_method: Initializer) -> None:
        super().__init__()
        self.dense = column_linear(config, config.hidden_size, init_method)
        self.norm = build_norm(config)
        self.bias = vocab_parallel_bias(vocab_size, padded_size)
        self.padding_V: torch.Tensor | None
        self.register_buffer("padding_V", is_padding_of_vocabulary(vocab_size, padded_size), persistent=False)

    def forward(self, narrow_BPH: torch.Tensor, decoder_VH: torch.Tensor) -> torch.Tensor:
        """[B, P, H] -> logits [B, P, V]; those of padding are -inf."""
        state_BPH = self.norm(gather_from_tensor_parallel(F.gelu(self.dense(narrow_BPH))))
        # Through the bias padding costs no pass over the logits; probability and gradient are exactly 0.
        bias_V = self.bias if self.padding_V is None else self.bias.masked_fill(self.padding_V, float("-inf"))
        return F.linear(copy_to_tensor_parallel(state_BPH), decoder_VH, bias_V)


class MaskedLMLoss(nn.Module):
    """Sum of the cross-entropy in nats over the labels that count."""

    def forward(self, logits: torch.Tensor, labels: torch.Tensor, label_mask: torch.Tensor) -> torch.Tensor:
        """[N, V], which may be overwritten, int64 [N], bool [N] -> fp32 scalar."""
        return (cross_entropy(logits.float(), labels) * label_mask).sum()


class NarrowBertForPretraining(nn.Module):
    """Masked-LM pretraining model for any layout.

    Args:
        config: shape of the encoder.
        vocab_size: entries of the tokenizer.
        padded_size: vocabulary entries to allocate over all tensor-parallel ranks (``padded_vocab_size``);
            default: ``vocab_size``. Padding changes no result.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, padded_size: int | None = None) -> None:
        super().__init__()
        self.config = config
        padded_size = vocab_size if padded_size is None else padded_size
        init_method = initializer(config)
        self.embeddings = Embeddings(config, vocab_size, padded_size, init_method)
        self.encoder = Encoder(config, init_method)
        self.head = MaskedLMHead(config, vocab_size, padded_size, init_method)
        self.loss = MaskedLMLoss()

    def logits(
        self,
        input_ids: torch.Tensor,
        narrow_positions: torch.Tensor,
        key_mask: torch.Tensor | None,
        document_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """This rank's vocabulary logits [B, P, V] at ``narrow_positions`` [B, P] of ``input_ids`` [B, S].

        ``key_mask`` [B, 1, 1, S] is True at real tokens, None where there is no padding.
        ``document_ids`` [B, S] is needed, and looked at, where ``document_attention`` is isolated.

        Raises:
            ValueError: isolated documents without ``document_ids``.
        """
        if self.config.document_attention == "shared":
            document_ids = None
        elif document_ids is None:
            raise ValueError("document_attention is isolated: give document_ids")
        narrow = self.encoder(self.embeddings(input_ids, document_ids), narrow_positions, key_mask, document_ids)
        return self.head(narrow, self.embeddings.word_embeddings.weight)

    def forward(
        self,
        input_ids: torch.Tensor,
        narrow_positions: torch.Tensor,
        key_mask: torch.Tensor | None,
        labels: torch.Tensor,
        label_mask: torch.Tensor,
        document_ids: torch.Tensor | None = None,
        *,
        count_correct: bool = False,
        return_logits: bool = False,
    ) -> MaskedLMOutput:
        """Sum of the masked-LM loss over the labels whose ``label_mask`` [B, P] is True.

        A sum, not a mean: the mean over the *global* count of masked tokens of a step can only be
        formed across micro-batches and ranks, and that is the trainer's to do.
        """
        logits = self.logits(input_ids, narrow_positions, key_mask, document_ids).flatten(0, 1)
        num_correct = None
        if count_correct:
            num_correct = ((argmax(logits.float()) == labels.flatten()) & label_mask.flatten()).sum()
        returned = None
        if return_logits:  # a copy: the loss may overwrite its own
            returned, logits = logits.float().unflatten(0, labels.shape), logits.clone()
        loss_sum = self.loss(logits, labels.flatten(), label_mask.flatten())
        return MaskedLMOutput(loss_sum, num_correct, returned)
