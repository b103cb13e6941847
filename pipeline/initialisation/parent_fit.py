"""Whether the weights of one run fit the model of another, and how they become its own."""

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING

import torch

from pipeline.checkpoints.format import TrainerState
from pipeline.checkpoints.reading import Fit
from pipeline.config import ModelConfig, RunConfig
from pipeline.data.mixture import Mixture
from pipeline.layout import parse_layout, without_windows
from pipeline.model.parameters import COMPUTING_OPTIONS, has_position_embeddings, model_parameters

if TYPE_CHECKING:  # transformers is imported only where layers are read on other sides of the ':'
    from pipeline.export.configuration_narrowbert import NarrowBertConfig

_GROWING = ("layout", "hidden_size", "num_attention_heads", "ffn_hidden_size")
"""What ``init.growth`` changes."""

_POSITIONS = "embeddings.position_embeddings.weight"


def model_of(state: TrainerState) -> ModelConfig:
    """The model that a checkpoint is of."""
    return ModelConfig(**state.config["model"])


def differences(state: TrainerState, config: RunConfig, shards: Mixture) -> tuple[list[str], list[str]]:
    """What differs of a run's model and the one that shall start from it: what weights do not allow, and the rest."""
    there, here = model_of(state), config.model
    wrong: list[str] = []
    others: list[str] = []
    table = model_parameters(there, shards.vocab_size)
    for name in (field.name for field in dataclasses.fields(ModelConfig)):
        before, now = getattr(there, name), getattr(here, name)
        if before == now:
            continue
        text = f"model.{name} {before} there, {now} here"
        if config.init.growth is not None and name in _GROWING:
            others.append(text)
            continue
        changed = dataclasses.replace(there, **{name: now})
        if name == "max_position_embeddings" and now > before:
            others.append(f"{text}, repeated in turn" if has_position_embeddings(here) else text)
        elif name == "layout":
            fits = _is_reread(there, changed, shards, is_allowed="layout" in config.init.allow)
            (others if fits else wrong).append(text)
        elif name in ("rotary_base", "local_rotary_base"):
            others.append(text)
        elif name in COMPUTING_OPTIONS or model_parameters(changed, shards.vocab_size) != table:
            wrong.append(text)
        else:
            others.append(text)
    if config.init.growth is not None:
        wrong += _cannot_grow(there, config, shards)
    return wrong, others


def _cannot_grow(there: ModelConfig, config: RunConfig, shards: Mixture) -> list[str]:
    """Why a model cannot grow to that of a run."""
    from pipeline.initialisation.growth.grow import growth_of

    growth, (small, here) = growth_of(config), sizes(there, config, shards)
    assert growth is not None
    problems = growth.problems(small, here)
    reread = dataclasses.replace(there, layout=small.layout)
    if not _is_reread(there, reread, shards, is_allowed="layout" in config.init.allow):
        problems.append(f"model.layout {there.layout} there, {config.model.layout} here")
    if all(getattr(there, name) == getattr(config.model, name) for name in _GROWING):
        problems.append("it has the same sizes: leave out init.growth")
    return problems


def sizes(there: ModelConfig, config: RunConfig, shards: Mixture) -> "tuple[NarrowBertConfig, NarrowBertConfig]":
    """The model of a run as large as ``there``, and as it is."""
    from pipeline.initialisation.growth.grow import smaller_config

    here = _export_config(config.model, shards)
    sizes = there.hidden_size, there.num_attention_heads, there.ffn_hidden_size
    return smaller_config(here, there.layout, *sizes), here


def _is_reread(there: ModelConfig, here: ModelConfig, shards: Mixture, *, is_allowed: bool) -> bool:
    """Whether another layout has the same layers on other sides of the ':', as far as that may differ.

    To narrow a BERT needs no permission; to narrow a NarrowBERT elsewhere may be a default that nobody chose.
    """
    theirs, ours = (parse_layout(model.layout) for model in (there, here))
    if theirs == ours:
        return True
    counts = [Counter(without_windows(layout.full + layout.narrow)) for layout in (theirs, ours)]
    if counts[0] != counts[1] or (theirs.narrow and not is_allowed):
        return False
    from pipeline.export.names import parameter_shapes
    from pipeline.initialisation.match import origins_of

    origins = origins_of(theirs, _export_config(here, shards))
    return set(origins.values()) == set(parameter_shapes(_export_config(there, shards)))


def _export_config(model: ModelConfig, shards: Mixture) -> "NarrowBertConfig":
    from pipeline.export.folder import export_config

    return export_config({**dataclasses.asdict(model), "vocab_size": shards.vocab_size}, shards.special_ids)


def fit_to(config: RunConfig, shards: Mixture, state: TrainerState) -> Fit:
    """The parent's tensors, of weights or moments, as those of this model.

    Every element is one of theirs, unless the model grows: then weights alone are read.
    """
    here, there = config.model, model_of(state)

    def fit(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if has_position_embeddings(here) and here.max_position_embeddings > there.max_position_embeddings:
            rows = torch.arange(here.max_position_embeddings) % there.max_position_embeddings
            tensors = {**tensors, _POSITIONS: tensors[_POSITIONS][rows]}
        if config.init.growth is not None:
            tensors = _grown(tensors, config, there, shards)
        elif parse_layout(here.layout) != parse_layout(there.layout):
            tensors = _reread(tensors, here, there, shards)
        return tensors

    return fit


def _grown(
    tensors: dict[str, torch.Tensor], config: RunConfig, there: ModelConfig, shards: Mixture
) -> dict[str, torch.Tensor]:
    from pipeline.export.names import from_transformers
    from pipeline.initialisation.growth.grow import growth_of

    growth, (small, here) = growth_of(config), sizes(there, config, shards)
    assert growth is not None
    return from_transformers(growth.apply(as_exported(tensors, small, there, shards), small, here), here)


def _reread(
    tensors: dict[str, torch.Tensor], here: ModelConfig, there: ModelConfig, shards: Mixture
) -> dict[str, torch.Tensor]:
    from pipeline.export.names import from_transformers

    ours = _export_config(here, shards)
    return from_transformers(as_exported(tensors, ours, there, shards), ours)


def as_exported(
    tensors: dict[str, torch.Tensor], ours: "NarrowBertConfig", there: ModelConfig, shards: Mixture
) -> dict[str, torch.Tensor]:
    """The parent's tensors under the export's names of a model with as many layers, ``ours``."""
    from pipeline.export.names import to_transformers
    from pipeline.initialisation.match import origins_of

    as_long = dataclasses.replace(there, max_position_embeddings=ours.max_position_embeddings)
    # Muon's matrices have no second moments, and none are read here.
    table = model_parameters(as_long, shards.vocab_size)
    missing = {entry.name: torch.zeros(entry.shape) for entry in table if entry.name not in tensors}
    exported = to_transformers({**tensors, **missing}, _export_config(as_long, shards))
    return {name: exported[origin] for name, origin in origins_of(parse_layout(there.layout), ours).items()}
