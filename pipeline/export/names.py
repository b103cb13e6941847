"""The names and packing of the parameters in training and in the export."""

import copy
import dataclasses
import inspect
from collections.abc import Iterator, Mapping

import torch

from pipeline.config import ModelConfig
from pipeline.export.configuration_narrowbert import ATTENTIONS, NarrowBertConfig, group_sublayers, parse_layout
from pipeline.export.modeling_narrowbert import GATED, NarrowBertForMaskedLM
from pipeline.model.parameters import model_parameters

State = dict[str, torch.Tensor]

TIED = NarrowBertForMaskedLM._tied_weights_keys
"""Names in the export that are copies of another: left out of the file, tied again on loading."""

_RENAMED = {
    "ffn_hidden_size": "intermediate_size",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "layernorm_epsilon": "layer_norm_eps",
    "init_method_std": "initializer_range",
    "position": "position_embedding_type",
    "rotary_base": "rope_theta",
    "local_rotary_base": "local_rope_theta",
    "activation": "hidden_act",
}
"""Options whose names in the export are those of transformers' BERT."""

TRAINING_ONLY = {"attention_output_dropout", "document_attention", "initialization", "recompute"}
"""What changes nothing for a row of one document: the export has no need of it."""

# An option that the exported classes do not know has no name here, so that ``export_config`` refuses it.
_EXPORTED = inspect.signature(NarrowBertConfig.__init__).parameters.keys()

CONFIG_NAMES = {"vocab_size": "vocab_size"} | {
    field.name: theirs
    for field in dataclasses.fields(ModelConfig)
    if (theirs := _RENAMED.get(field.name, field.name)) in _EXPORTED
}
"""The training model's configuration -> the export's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Parameter:
    """One parameter of the training model and where it goes."""

    ours: str
    """Name in the training model."""
    theirs: tuple[str, ...]
    """Names in the export; several where one matrix packs them."""
    shape: tuple[int, ...]
    """Shape of each of ``theirs``."""
    blocks: int = 1
    """Output features of a matrix that packs several are [blocks, one of each of ``theirs``, the rest]."""

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
        Nothing is rounded: ``from_transformers`` gives ``state`` back to the bit.

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


def left_side(state: State, config: NarrowBertConfig) -> tuple[State, NarrowBertConfig]:
    """The encoder left of ``:`` and the embeddings, without what is right of it and without the head.

    A pre-norm encoder ends in the norm of the frozen state: its result is what the narrow layers read.

    Args:
        state: parameters of the export.
        config: of it.

    Raises:
        ValueError: one line: there is nothing on one of the sides, or nothing right of ``:`` reads the state.
    """
    full, narrow = parse_layout(config.layout)
    if not set(full) & set(ATTENTIONS) or not narrow:
        raise ValueError(f"layout {config.layout} has no encoder left of ':' that something right of it reads")
    if "bert.final_norm.weight" in state and not config.narrow_kv_owners:
        raise ValueError(f"layout {config.layout} has no attention right of ':', whose norm would end the encoder")
    kept = {name: tensor for name, tensor in state.items() if name.startswith(("bert.embeddings.", "bert.encoder."))}
    for name, tensor in state.items():
        if name.startswith("bert.frozen_norm."):
            kept[name.replace("frozen_norm", "final_norm")] = tensor
    alone = copy.deepcopy(config)
    alone.layout = config.layout.partition(":")[0].strip()
    alone.architectures = ["NarrowBertModel"]
    return kept, alone


def parameter_shapes(config: NarrowBertConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the export's parameters, without the tied copies."""
    return {name: parameter.shape for parameter in _parameters(config) for name in parameter.theirs}


def _parameters(config: NarrowBertConfig) -> list[_Parameter]:
    """Every parameter of a model with this configuration."""
    options = {ours: getattr(config, theirs) for ours, theirs in CONFIG_NAMES.items() if ours != "vocab_size"}
    names = _module_names(config)
    parameters = []
    for parameter in model_parameters(ModelConfig(**options), config.vocab_size):
        module, _, kind = parameter.name.rpartition(".")
        parameters.append(
            _Parameter(
                ours=parameter.name,
                theirs=tuple(f"{name}.{kind}" for name in names[module]),
                shape=(parameter.shape[0] // parameter.num_parts, *parameter.shape[1:]),
                blocks=parameter.num_blocks,
            )
        )
    return parameters


def _module_names(config: NarrowBertConfig) -> dict[str, tuple[str, ...]]:
    """Module of the training model -> its modules in the export, in the order in which they are packed."""
    names: dict[str, tuple[str, ...]] = {
        "embeddings.norm": ("bert.embeddings.LayerNorm",),
        "encoder.frozen_norm": ("bert.frozen_norm",),
        "encoder.final_norm": ("bert.final_norm",),
        "head": ("cls.predictions",),
        "head.dense": ("cls.predictions.transform.dense",),
        "head.norm": ("cls.predictions.transform.LayerNorm",),
    }
    for kind in ("word", "token_type", "position"):
        names[f"embeddings.{kind}_embeddings"] = (f"bert.embeddings.{kind}_embeddings",)
    for ours, theirs, letter in sublayers(config.layout):
        of_kind = _attention_names(ours, theirs) if letter in ATTENTIONS else _feed_forward_names(config, ours, theirs)
        names.update(of_kind)
    owners = [f"bert.encoder_narrow.layer.{number}.attention.self" for number in config.narrow_kv_owners]
    names["encoder.narrow_kv.linear"] = tuple(f"{owner}.{name}" for owner in owners for name in ("key", "value"))
    return names


def _attention_names(ours: str, theirs: str) -> dict[str, tuple[str, ...]]:
    query, key, value = (f"{theirs}.attention.self.{name}" for name in ("query", "key", "value"))
    return {
        f"{ours}.linear_qkv": (query, key, value),
        f"{ours}.linear_q": (query,),  # a narrow one, whose keys and values are in encoder.narrow_kv
        f"{ours}.linear_proj": (f"{theirs}.attention.output.dense",),
        f"{ours}.norm": (f"{theirs}.attention.output.LayerNorm",),
    }


def _feed_forward_names(config: NarrowBertConfig, ours: str, theirs: str) -> dict[str, tuple[str, ...]]:
    parts = ("gate", "dense") if config.hidden_act in GATED else ("dense",)
    return {
        f"{ours}.linear_fc1": tuple(f"{theirs}.intermediate.{part}" for part in parts),
        f"{ours}.linear_fc2": (f"{theirs}.output.dense",),
        f"{ours}.norm": (f"{theirs}.output.LayerNorm",),
    }


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
    """Refuse a state that has not exactly the ``expected`` names and shapes."""
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
    """Output features [blocks, parts, size] -> ``parts`` tensors with output features [blocks, size]."""
    by_block = packed.unflatten(0, (blocks, parts, -1))
    return [part.clone(memory_format=torch.contiguous_format).flatten(0, 1) for part in by_block.unbind(1)]


def _pack(parts: list[torch.Tensor], blocks: int) -> torch.Tensor:
    """The inverse of ``_unpack``."""
    return torch.stack([part.unflatten(0, (blocks, -1)) for part in parts], dim=1).flatten(0, 2)
