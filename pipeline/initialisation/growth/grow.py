"""From the weights of one size to those of another: what is possible, and what it changes."""

import copy
import dataclasses
from collections.abc import Mapping

import torch

from data_prep.contract.command_line import UserError
from pipeline.config import Depth, GrowthMethod, RunConfig
from pipeline.export.configuration_narrowbert import NarrowBertConfig, parse_layout
from pipeline.export.names import State, parameter_shapes
from pipeline.initialisation.growth.deepen import deepen, layer_origins
from pipeline.initialisation.growth.widen import widen
from pipeline.layout import without_windows

SIZES = {
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "intermediate_size": "ffn_hidden_size",
}
"""What may differ besides the layout: names in the export and in ``model``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Growth:
    """How a model becomes another."""

    method: GrowthMethod
    """Of more units."""
    depth: Depth
    """Of more layers."""
    seed: int
    """Of what is drawn."""

    def apply(self, state: Mapping[str, torch.Tensor], there: NarrowBertConfig, here: NarrowBertConfig) -> State:
        """Parameters of an export ``there`` as those of the larger model ``here``, which ``problems`` has accepted."""
        wide = of_sizes(here, there.layout, here)
        return deepen(widen(state, there, wide, self.method, self.seed), wide, here, self.depth)

    def problems(self, there: NarrowBertConfig, here: NarrowBertConfig) -> list[str]:
        """Why ``there`` cannot grow to ``here``, one text each."""
        found = [
            f"model.{ours} {getattr(there, theirs)} there, {getattr(here, theirs)} here, which is smaller (a smaller "
            "model: narrowbert resize)"
            for theirs, ours in SIZES.items()
            if getattr(there, theirs) > getattr(here, theirs)
        ]
        found += _of_both_directions(there, here, there.layout, here.layout, self.depth)
        is_deeper = there.layout != here.layout
        if self.method == "zero" and here.norm != "rmsnorm":
            found.append("growth zero needs norm rmsnorm: a layer norm would take the mean over the zeros too")
        if self.depth == "identity" and is_deeper and "bert.final_norm.weight" not in parameter_shapes(here):
            found.append("depth identity needs a pre-norm model: after a norm no layer leaves the state as it was")
        return found

    def check(self, name: str, there: NarrowBertConfig, here: NarrowBertConfig) -> None:
        """Refuse what cannot grow.

        Args:
            name: of the smaller model, for the message.

        Raises:
            UserError: one line with every reason.
        """
        problems = self.problems(there, here)
        if there.layout == here.layout and not _is_wider(there, here):
            problems.append("it has the same sizes: leave out init.growth")
        if problems:
            raise UserError(f"{name} cannot grow to the model: {'; '.join(problems)}")

    def describe(self, there: NarrowBertConfig, here: NarrowBertConfig) -> list[str]:
        """Lines for the log."""
        sizes = [f"{ours} {getattr(there, theirs)} to {getattr(here, theirs)}" for theirs, ours in SIZES.items()]
        first = f"grown by {self.method} (seed {self.seed}): {', '.join(sizes)}, layout {there.layout} to {here.layout}"
        return [first, *self.remarks(there, here)]

    def remarks(self, there: NarrowBertConfig, here: NarrowBertConfig) -> list[str]:
        """Lines on what growing changes of what the model computes, where it does."""
        lines = []
        uneven = [
            f"model.{ours} {getattr(there, theirs)} to {getattr(here, theirs)}"
            for theirs, ours in SIZES.items()
            if getattr(here, theirs) % getattr(there, theirs)
        ]
        if self.method == "tile":
            lines.append("growth tile divides nothing: the model computes something else at first")
        elif uneven and self.method != "zero":
            lines.append(f"{', '.join(uneven)} is no whole multiple: the model computes something else at first")
        if self.method == "aki" and _is_wider(there, here):
            lines.append("growth aki takes new units from the layer above: the model computes something else at first")
        if there.num_hidden_layers != here.num_hidden_layers and self.depth != "identity":
            lines.append(f"depth {self.depth} repeats layers: the model computes something else at first")
        if here.position_embedding_type == "alibi" and there.num_attention_heads != here.num_attention_heads:
            lines.append("a copied head has another slope of alibi than the head it copies")
        return lines


def growth_of(config: RunConfig) -> Growth | None:
    """How a run's weights grow out of what they start from; None: they have the model's sizes."""
    init = config.init
    return init.growth and Growth(method=init.growth, depth=init.depth, seed=config.training.seed)


def shrink_problems(there: NarrowBertConfig, here: NarrowBertConfig, depth: Depth) -> list[str]:
    """Why ``there`` cannot be coalesced to ``here``, one text each."""
    found = [
        f"{ours} {getattr(there, theirs)} to {getattr(here, theirs)}, which is larger, while others become smaller"
        for theirs, ours in SIZES.items()
        if getattr(there, theirs) < getattr(here, theirs)
    ]
    return found + _of_both_directions(there, here, here.layout, there.layout, depth)


def smaller_config(
    here: NarrowBertConfig, layout: str, hidden_size: int, num_attention_heads: int, intermediate_size: int
) -> NarrowBertConfig:
    """The model ``here`` as large as another; with as many sublayers in all its ``:`` stands where it does here."""
    counts = [sorted(without_windows(text)) for text in (_letters(layout), _letters(here.layout))]
    sizes = copy.deepcopy(here)
    sizes.hidden_size, sizes.num_attention_heads = hidden_size, num_attention_heads
    sizes.intermediate_size = intermediate_size
    return of_sizes(here, here.layout if counts[0] == counts[1] else layout, sizes)


def _letters(layout: str) -> str:
    return "".join(parse_layout(layout))


def of_sizes(config: NarrowBertConfig, layout: str, sizes: NarrowBertConfig) -> NarrowBertConfig:
    """``config`` with another layout and the sizes of another."""
    changed = copy.deepcopy(config)
    for name in SIZES:
        setattr(changed, name, getattr(sizes, name))
    changed.layout = layout
    return changed


def _is_wider(there: NarrowBertConfig, here: NarrowBertConfig) -> bool:
    return any(getattr(there, name) != getattr(here, name) for name in SIZES)


def _has_groups(config: NarrowBertConfig) -> bool:
    """Whether some narrow layers share keys and values, but not all."""
    attentions = sum("s" in layer for layer in config.narrow_layers)
    return 1 < len(config.narrow_kv_owners) < attentions


def _of_both_directions(
    there: NarrowBertConfig, here: NarrowBertConfig, small_layout: str, large_layout: str, depth: Depth
) -> list[str]:
    found = []
    head_sizes = [config.hidden_size / config.num_attention_heads for config in (there, here)]
    if head_sizes[0] != head_sizes[1]:
        found.append(
            f"heads of {head_sizes[0]:g} there, {head_sizes[1]:g} here: hidden_size and num_attention_heads must grow "
            "alike, since whole heads are copied"
        )
    small, large = (of_sizes(here, layout, here) for layout in (small_layout, large_layout))
    uneven = []
    for side, layers in (("left", "full_layers"), ("right", "narrow_layers")):
        try:
            layer_origins(getattr(small, layers), getattr(large, layers), depth)
        except ValueError as error:
            uneven.append(f"{side} of ':' {error}")
    if uneven:
        found.append(f"layout {there.layout} there, {here.layout} here: {', '.join(uneven)}")
    if small_layout != large_layout and any(_has_groups(config) for config in (small, large)):
        found.append("narrow layers share keys and values in groups: more layers make other groups")
    return found
