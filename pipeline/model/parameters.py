"""The table of a model's parameters: names, shapes, partition, and the options that bring them in. Imports no torch.

Parameter counts, FLOPs, planned memory and traffic, and the names and shapes of an export follow from this table.
A test compares it with ``named_parameters()`` of the model under every option.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Literal

from pipeline.config import ModelConfig, OptimizerConfig
from pipeline.layout import ATTENTIONS, Layout, kv_projections, parse_layout

NUM_TOKEN_TYPES = 2
"""BERT's segments. Without next-sentence pairs every token is in segment 0."""

VOCAB_MULTIPLE = 128
"""Every rank's share of the vocabulary is a multiple of this: matrix products like round sizes (Megatron's choice)."""

VOCABULARY_PARAMETERS = ("embeddings.word_embeddings.weight", "head.bias")
"""The parameters that grow with the vocabulary, and are padded with it."""

COMPUTING_OPTIONS = (
    "hidden_size",
    "num_attention_heads",
    "ffn_hidden_size",
    "layernorm_epsilon",
    "normalization",
    "skip_first_norm",
    "norm",
    "position",
    "rotary_base",
    "attention_window",
    "local_rotary_base",
    "activation",
)
"""Options that change what the weights compute; of the others the tensors' names and shapes tell."""

_OF_ROPE = ("rotary_base", "local_rotary_base")
_OF_WINDOWS = ("attention_window", "local_rotary_base")

_FIRST = "encoder.full_sublayers.0"

Positions = Literal["every", "narrow"]
"""Every position of a row, or its narrow ones."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of the training model."""

    name: str
    """Name in ``named_parameters()`` and in checkpoints."""
    shape: tuple[int, ...]
    """Shape over all tensor-parallel ranks."""
    partition_dim: int | None = None
    """Dimension that tensor-parallel ranks divide among them; None: each rank holds it whole."""
    num_parts: int = 1
    """Matrices or biases that are packed in it."""
    num_blocks: int = 1
    """Output features are ``[num_blocks, num_parts, the rest]``; a tensor-parallel rank holds whole blocks."""
    multiplies: Positions | None = None
    """Positions that a forward pass multiplies by it; None: it is looked up or added."""
    options: tuple[str, ...] = ()
    """Options (keys of ``model``) that bring it in: another value of any of them leaves it out."""

    @property
    def num_elements(self) -> int:
        """Elements over all tensor-parallel ranks."""
        return math.prod(self.shape)

    def rank_elements(self, tensor_parallel_size: int) -> int:
        """Elements that one of ``tensor_parallel_size`` ranks holds."""
        return self.num_elements if self.partition_dim is None else self.num_elements // tensor_parallel_size


def model_parameters(model: ModelConfig, vocab_size: int, layout: Layout | None = None) -> list[Parameter]:
    """Every parameter of a model.

    Args:
        model: shape of the encoder.
        vocab_size: entries of the vocabulary; ``padded_vocab_size`` for what ranks allocate.
        layout: in place of the model's own.
    """
    layout = parse_layout(model.layout) if layout is None else layout
    return [
        *_embeddings(model, vocab_size),
        *_sublayers(model, layout),
        *_frozen_state(model, layout),
        *_head(model, vocab_size),
    ]


def hidden_matrices(model: ModelConfig) -> list[Parameter]:
    """The matrices that map hidden states to hidden states: all that is multiplied but the vocabulary's."""
    return [
        parameter
        for parameter in model_parameters(model, vocab_size=1)  # of any size: it is in none of them
        if parameter.multiplies is not None and parameter.name not in VOCABULARY_PARAMETERS
    ]


def count_parameters(model: ModelConfig, vocab_size: int) -> int:
    """Trainable parameters over all tensor-parallel ranks."""
    return sum(parameter.num_elements for parameter in model_parameters(model, vocab_size))


def count_moments(model: ModelConfig, optimizer: OptimizerConfig, vocab_size: int) -> int:
    """Elements of the optimizer's moments over all ranks: two a parameter, one where Muon updates it."""
    orthogonalised = hidden_matrices(model) if optimizer.type == "muon" else []
    return 2 * count_parameters(model, vocab_size) - sum(matrix.num_elements for matrix in orthogonalised)


def padded_vocab_size(vocab_size: int, tensor_parallel_size: int) -> int:
    """The next size that gives each tensor-parallel rank an equal, round share of the vocabulary."""
    multiple = VOCAB_MULTIPLE * tensor_parallel_size
    return -(-vocab_size // multiple) * multiple


def computes_with(option: str, position: str, layout: Layout) -> bool:
    """Whether one of ``COMPUTING_OPTIONS`` changes anything in a model with these positions and this layout."""
    return (option not in _OF_ROPE or position == "rope") and (option not in _OF_WINDOWS or "w" in layout.full)


def has_position_embeddings(model: ModelConfig) -> bool:
    """Whether the embeddings know positions; otherwise attention does."""
    return model.position == "absolute"


def output_dropout(model: ModelConfig, letter: str) -> float:
    """Dropout on the output of a layout's sublayer."""
    output = model.attention_output_dropout
    return model.hidden_dropout if output is None or letter not in ATTENTIONS else output


def takes_blocks(model: ModelConfig) -> bool:
    """Whether FlexAttention, which knows no dropout, computes its attention on CUDA."""
    return not model.attention_dropout


def is_gated(model: ModelConfig) -> bool:
    """Whether the feed-forward sublayers have a gate beside the value."""
    return model.activation in ("geglu", "swiglu")


def gate_blocks(model: ModelConfig) -> int:
    """Blocks in which a gated unit's gates and values alternate.

    Every possible tensor-parallel size divides the heads and the inner width, so it divides the blocks too.
    """
    return math.gcd(model.ffn_hidden_size, model.num_attention_heads)


def num_kv_projections(model: ModelConfig, layout: Layout) -> int:
    """How many key/value projections of the frozen state there are."""
    return len(set(kv_projections(model.narrow_kv, layout.narrow.count("s"))))


def _embeddings(model: ModelConfig, vocab_size: int) -> Iterator[Parameter]:
    hidden_size = model.hidden_size
    yield Parameter(
        name="embeddings.word_embeddings.weight",
        shape=(vocab_size, hidden_size),
        partition_dim=0,
        multiplies="narrow",  # as the decoder, to which it is tied
    )
    yield Parameter(name="embeddings.token_type_embeddings.weight", shape=(NUM_TOKEN_TYPES, hidden_size))
    if has_position_embeddings(model):
        yield Parameter(
            name="embeddings.position_embeddings.weight",
            shape=(model.max_position_embeddings, hidden_size),
            options=("position",),
        )
    yield from _norm(model, "embeddings.norm")


def _sublayers(model: ModelConfig, layout: Layout) -> Iterator[Parameter]:
    sides: tuple[tuple[Literal["full", "narrow"], str, Positions], ...] = (
        ("full", layout.full, "every"),
        ("narrow", layout.narrow, "narrow"),
    )
    for side, letters, positions in sides:
        for index, letter in enumerate(letters):
            name = f"encoder.{side}_sublayers.{index}"
            if letter in ATTENTIONS:
                yield from _attention(model, name, side, positions)
            else:
                yield from _feed_forward(model, name, positions)
            if not (model.skip_first_norm and name == _FIRST):
                yield from _norm(model, f"{name}.norm", *(("skip_first_norm",) if name == _FIRST else ()))


def _attention(
    model: ModelConfig, name: str, side: Literal["full", "narrow"], positions: Positions
) -> Iterator[Parameter]:
    if side == "full":
        yield from _column_linear(model, f"{name}.linear_qkv", positions, model.hidden_size, num_parts=3)
    else:  # keys and values are those of the frozen state
        yield from _column_linear(model, f"{name}.linear_q", positions, model.hidden_size)
    yield from _row_linear(model, f"{name}.linear_proj", positions, model.hidden_size)


def _feed_forward(model: ModelConfig, name: str, positions: Positions) -> Iterator[Parameter]:
    inner, num_parts = model.ffn_hidden_size, 2 if is_gated(model) else 1
    yield from _column_linear(
        model, f"{name}.linear_fc1", positions, inner, num_parts=num_parts, num_blocks=gate_blocks(model)
    )
    yield from _row_linear(model, f"{name}.linear_fc2", positions, inner)


def _frozen_state(model: ModelConfig, layout: Layout) -> Iterator[Parameter]:
    """Keys and values for all narrow attention sublayers, and the norms outside of the sublayers."""
    projections = num_kv_projections(model, layout)
    if projections:
        name = "encoder.narrow_kv.linear"
        yield from _column_linear(model, name, "every", model.hidden_size, num_parts=2 * projections)
    if model.normalization == "pre":
        for name in ("frozen_norm", "final_norm") if projections else ("final_norm",):
            yield from _norm(model, f"encoder.{name}", "normalization")


def _head(model: ModelConfig, vocab_size: int) -> Iterator[Parameter]:
    yield from _column_linear(model, "head.dense", "narrow", model.hidden_size)
    yield from _norm(model, "head.norm")
    yield Parameter(name="head.bias", shape=(vocab_size,), partition_dim=0)


def _column_linear(
    model: ModelConfig,
    name: str,
    positions: Positions,
    output_size: int,
    *,
    num_parts: int = 1,
    num_blocks: int | None = None,
) -> Iterator[Parameter]:
    """A linear layer on the hidden state, divided by output features; by default packed head by head.

    Args:
        output_size: output features of each part.
    """
    weight = Parameter(
        name=f"{name}.weight",
        shape=(num_parts * output_size, model.hidden_size),
        partition_dim=0,
        num_parts=num_parts,
        num_blocks=num_blocks or model.num_attention_heads,
        multiplies=positions,
    )
    yield weight
    if model.bias:
        yield dataclasses.replace(
            weight, name=f"{name}.bias", shape=weight.shape[:1], multiplies=None, options=("bias",)
        )


def _row_linear(model: ModelConfig, name: str, positions: Positions, input_size: int) -> Iterator[Parameter]:
    """A linear layer back to the hidden state, divided by input features; every rank holds its bias whole."""
    yield Parameter(name=f"{name}.weight", shape=(model.hidden_size, input_size), partition_dim=1, multiplies=positions)
    if model.bias:
        yield Parameter(name=f"{name}.bias", shape=(model.hidden_size,), options=("bias",))


def _norm(model: ModelConfig, name: str, *options: str) -> Iterator[Parameter]:
    yield Parameter(name=f"{name}.weight", shape=(model.hidden_size,), options=options)
    if model.bias and model.norm == "layernorm":
        yield Parameter(name=f"{name}.bias", shape=(model.hidden_size,), options=(*options, "bias", "norm"))
