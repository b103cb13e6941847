"""A model of more layers out of a model of fewer, on each side of the narrowing point by itself.

``stack``: whole copies of a side on top of each other (Gong et al., "StackBERT", ICML 2019). ``interleave``: every
layer repeated in place. ``identity``: the same, repeats giving nothing to the residual stream, which in pre-norm leaves
the model as it was.
"""

import dataclasses
import re
from collections.abc import Mapping

import torch

from pipeline.config import Depth
from pipeline.export.configuration_narrowbert import NarrowBertConfig
from pipeline.export.names import State, parameter_shapes
from pipeline.initialisation.growth.units import LAYER, depth_map

_OUTPUTS = re.compile(r".*\.(attention\.output|output)\.dense\.(weight|bias)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerOrigin:
    """Where a layer of a deeper model comes from."""

    number: int
    """Of the layer on the same side of the smaller model."""
    is_repeat: bool
    """Whether a layer before it on this side has come from there already."""


def layer_origins(small: list[str], large: list[str], depth: Depth) -> list[LayerOrigin]:
    """Origin of every layer of a side; layers come from those of their own kind, such as ``sf`` or ``wf``.

    Args:
        small, large: layers of the side, as in ``NarrowBertConfig.full_layers``.
        depth: how layers are repeated.

    Raises:
        ValueError: a kind of layer that ``small`` lacks, or has more of.
    """
    places: dict[int, int] = {}
    for kind in sorted({*small, *large}):
        theirs, ours = ([n for n, layer in enumerate(side) if layer == kind] for side in (small, large))
        if not theirs or len(theirs) > len(ours):
            raise ValueError(f"{len(theirs)} layers '{kind}' there, {len(ours)} here")
        mapped = depth_map(len(theirs), len(ours), depth)
        places |= {here: theirs[there] for here, there in zip(ours, mapped, strict=True)}
    origins, seen = [], set[int]()
    for number in range(len(large)):
        origins.append(LayerOrigin(number=places[number], is_repeat=places[number] in seen))
        seen.add(places[number])
    return origins


def deepen(state: Mapping[str, torch.Tensor], there: NarrowBertConfig, here: NarrowBertConfig, depth: Depth) -> State:
    """Parameters of an export, deeper: a pure function of its arguments.

    Args:
        state: of a model ``there``.
        there: the smaller model.
        here: the deeper one, equal to it in all but its layout.
        depth: how layers are repeated.

    Raises:
        ValueError: layers that have no origin, see ``layer_origins``.
    """
    sides = {
        "encoder": layer_origins(there.full_layers, here.full_layers, depth),
        "encoder_narrow": layer_origins(there.narrow_layers, here.narrow_layers, depth),
    }
    owners = key_value_owners(there)
    grown: State = {}
    for name, shape in parameter_shapes(here).items():
        found = LAYER.fullmatch(name)
        if found is None:
            grown[name] = state[name].clone()
            continue
        side, rest, kind = found[1], found[3], found[4]
        origin = sides[side][int(found[2])]
        number = origin.number
        if side == "encoder_narrow" and rest in ("attention.self.key", "attention.self.value"):
            number = owners[number]
        tensor = state.get(f"bert.{side}.layer.{number}.{rest}.{kind}")
        if tensor is None:  # the norm that skip_first_norm leaves out: here it stands further up
            assert there.skip_first_norm, name
            tensor = torch.full(shape, float(kind == "weight"), dtype=next(iter(state.values())).dtype)
        is_identity = depth == "identity" and origin.is_repeat and _OUTPUTS.fullmatch(name)
        grown[name] = torch.zeros_like(tensor) if is_identity else tensor.clone()
    return grown


def key_value_owners(config: NarrowBertConfig) -> dict[int, int]:
    """Narrow layer with attention -> the one whose keys and values it reads."""
    return {
        number: max(owner for owner in config.narrow_kv_owners if owner <= number)
        for number, sublayers in enumerate(config.narrow_layers)
        if "s" in sublayers
    }
