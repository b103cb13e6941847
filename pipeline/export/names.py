"""The names and packing of the parameters in training and in the export."""

import dataclasses
import math
from collections.abc import Iterator, Mapping

import torch

from pipeline.export.configuration_narrowbert import NarrowBertConfig, group_sublayers, parse_layout
from pipeline.export.modeling_narrowbert import GATED, NarrowBertForMaskedLM

State = dict[str, torch.Tensor]

TIED = NarrowBertForMaskedLM._tied_weights_keys
"""Names in the export that are copies of another: left out of the file, tied again on loading."""

CONFIG_NAMES = {
    "layout": "layout",
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "ffn_hidden_size": "intermediate_size",
    "max_position_embeddings": "max_position_embeddings",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "layernorm_epsilon": "layer_norm_eps",
    "init_method_std": "initializer_range",
    "normalization": "normalization",
    "norm": "norm",
    "position": "position_embedding_type",
    "rotary_base": "rope_theta",
    "activation": "hidden_act",
    "bias": "bias",
    "narrow_kv": "narrow_kv",
}
"""The training model's configuration -> the export's."""

TRAINING_ONLY = {"document_attention", "recompute"}
"""What changes nothing for a row of one document: the export has no need of it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Parameter:
    """One parameter of the training model and where it goes."""

    ours: str
    """Name in the training model."""
    theirs: tuple[str, ...]
    """Names in the export; several where one matrix packs them."""
    shape: tuple[int, ...]
    """Shape of each of `theirs`."""
    blocks: int = 1
    """Rows of a matrix that packs several are [blocks, one of each of `theirs`, the rest]."""

    @property
    def packed_shape(self) -> tuple[int, ...]:
        """Shape in the training model."""
        return (self.shape[0] * len(self.theirs), *self.shape[1:])


def to_transformers(state: Mapping[str, torch.Tensor], config: NarrowBertConfig) -> State:
    """The training model's full parameters under the export's names.

    Args:
        state: unsharded parameters by name.
        config: of the exported model.

    Returns:
        Parameters of ``NarrowBertForMaskedLM`` without the tied copies, as in its model.safetensors.
        Nothing is rounded: ``from_transformers`` gives `state` back to the bit.

    Raises:
        ValueError: every parameter that is missing, unexpected or of another shape.
    """
    table = _parameters(config)
    _check(state, {p.ours: p.packed_shape for p in table})
    converted: State = {}
    for parameter in table:
        parts = [state[parameter.ours]]
        if len(parameter.theirs) > 1:
            parts = _unpack(parts[0], len(parameter.theirs), parameter.blocks)
        converted.update(zip(parameter.theirs, parts, strict=True))
    return converted


def from_transformers(state: Mapping[str, torch.Tensor], config: NarrowBertConfig) -> State:
    """The exact inverse of ``to_transformers``; tied copies may be present if they are equal.

    Raises:
        ValueError: every parameter that is missing, unexpected, of another shape, or tied by name
            but not equal.
    """
    table = _parameters(config)
    untied = {name: tensor for name, tensor in state.items() if name not in TIED}
    _check(untied, {name: p.shape for p in table for name in p.theirs})
    unequal = [name for name, of in TIED.items() if name in state and not state[name].equal(untied[of])]
    if unequal:
        raise ValueError(f"not equal to what they are tied to: {', '.join(unequal)}")
    converted: State = {}
    for parameter in table:
        parts = [untied[name] for name in parameter.theirs]
        converted[parameter.ours] = _pack(parts, parameter.blocks) if len(parts) > 1 else parts[0]
    return converted


def parameter_shapes(config: NarrowBertConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the export's parameters, without the tied copies."""
    return {name: parameter.shape for parameter in _parameters(config) for name in parameter.theirs}


class _Table:
    """Collects the parameters of a model, in the shapes of its configuration."""

    def __init__(self, config: NarrowBertConfig) -> None:
        self.config = config
        self.rows: list[_Parameter] = []

    def add(self, ours: str, *theirs: str, shape: tuple[int, ...], blocks: int = 1) -> None:
        self.rows.append(_Parameter(ours=ours, theirs=theirs, shape=shape, blocks=blocks))

    def linear(
        self, ours: str, *theirs: str, rows: int | None = None, columns: int | None = None, blocks: int | None = None
    ) -> None:
        """By default hidden size x hidden size, packed head by head."""
        hidden = self.config.hidden_size
        rows, blocks = rows or hidden, blocks or self.config.num_attention_heads
        for kind, shape in (("weight", (rows, columns or hidden)), ("bias", (rows,)))[: 1 + self.config.bias]:
            self.add(f"{ours}.{kind}", *(f"{name}.{kind}" for name in theirs), shape=shape, blocks=blocks)

    def norm(self, ours: str, theirs: str) -> None:
        has_bias = self.config.bias and self.config.norm == "layernorm"
        for kind in ("weight", "bias")[: 1 + has_bias]:
            self.add(f"{ours}.{kind}", f"{theirs}.{kind}", shape=(self.config.hidden_size,))


def _parameters(config: NarrowBertConfig) -> list[_Parameter]:
    """Every parameter of a model with this configuration."""
    table = _Table(config)
    sizes = {"word": config.vocab_size, "token_type": config.type_vocab_size}
    if config.position_embedding_type == "absolute":
        sizes["position"] = config.max_position_embeddings
    for kind, size in sizes.items():
        name = f"embeddings.{kind}_embeddings.weight"
        table.add(name, f"bert.{name}", shape=(size, config.hidden_size))
    table.norm("embeddings.norm", "bert.embeddings.LayerNorm")
    for ours, theirs, letter in sublayers(config.layout):
        if letter == "s":
            _add_attention(table, ours, theirs)
        else:
            _add_feed_forward(table, ours, theirs)
    owners = [f"bert.encoder_narrow.layer.{number}.attention.self" for number in config.narrow_kv_owners]
    if owners:
        table.linear("encoder.narrow_kv.linear", *(f"{owner}.{name}" for owner in owners for name in ("key", "value")))
    if config.normalization == "pre":
        for name in ("frozen_norm", "final_norm") if owners else ("final_norm",):
            table.norm(f"encoder.{name}", f"bert.{name}")
    table.linear("head.dense", "cls.predictions.transform.dense")
    table.norm("head.norm", "cls.predictions.transform.LayerNorm")
    table.add("head.bias", "cls.predictions.bias", shape=(config.vocab_size,))
    return table.rows


def _add_attention(table: _Table, ours: str, theirs: str) -> None:
    query, key, value = (f"{theirs}.attention.self.{name}" for name in ("query", "key", "value"))
    if ours.startswith("encoder.full"):
        table.linear(f"{ours}.linear_qkv", query, key, value)
    else:  # keys and values are in encoder.narrow_kv
        table.linear(f"{ours}.linear_q", query)
    table.linear(f"{ours}.linear_proj", f"{theirs}.attention.output.dense")
    table.norm(f"{ours}.norm", f"{theirs}.attention.output.LayerNorm")


def _add_feed_forward(table: _Table, ours: str, theirs: str) -> None:
    config = table.config
    inner, blocks = config.intermediate_size, math.gcd(config.intermediate_size, config.num_attention_heads)
    names = ("gate", "dense") if config.hidden_act in GATED else ("dense",)
    table.linear(f"{ours}.linear_fc1", *(f"{theirs}.intermediate.{name}" for name in names), rows=inner, blocks=blocks)
    table.linear(f"{ours}.linear_fc2", f"{theirs}.output.dense", columns=inner)
    table.norm(f"{ours}.norm", f"{theirs}.output.LayerNorm")


def sublayers(layout: str) -> Iterator[tuple[str, str, str]]:
    """(name in the training model, name of the export's layer, letter) of every sublayer, in order."""
    sides = zip(("full", "narrow"), ("encoder", "encoder_narrow"), parse_layout(layout), strict=True)
    for side, encoder, letters_of_side in sides:
        index = 0
        for number, letters in enumerate(group_sublayers(letters_of_side)):
            for letter in letters:
                yield f"encoder.{side}_sublayers.{index}", f"bert.{encoder}.layer.{number}", letter
                index += 1


def _check(state: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a state that has not exactly the `expected` names and shapes."""
    problems = [f"missing: {name}" for name in expected if name not in state]
    problems += [f"unexpected: {name}" for name in state if name not in expected]
    problems += [
        f"shape of {name}: {list(state[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    if problems:
        raise ValueError("these parameters do not make a model of this configuration: " + "; ".join(problems))


def _unpack(packed: torch.Tensor, parts: int, blocks: int) -> list[torch.Tensor]:
    """Rows arranged [blocks, parts, size] -> `parts` tensors with rows arranged [blocks, size]."""
    by_block = packed.unflatten(0, (blocks, parts, -1))
    return [part.clone(memory_format=torch.contiguous_format).flatten(0, 1) for part in by_block.unbind(1)]


def _pack(parts: list[torch.Tensor], blocks: int) -> torch.Tensor:
    """The inverse of ``_unpack``."""
    return torch.stack([part.unflatten(0, (blocks, -1)) for part in parts], dim=1).flatten(0, 2)
