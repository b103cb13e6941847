"""A smaller model out of a larger one: what growing undoes.

After "A Multi-Level Framework for Accelerating Training Transformer Models" (ICLR 2024), section 3: outputs of merged
units are averaged and inputs added up, so that growing a model and coalescing it gives it back. There the embeddings
are added up and divided again when they grow; here they are copied and averaged, and the norm before the decoder,
which is the table of words, carries the division: that is exact for any epsilon.
"""

from collections.abc import Mapping

import torch

from pipeline.config import Depth
from pipeline.export.configuration_narrowbert import NarrowBertConfig
from pipeline.export.names import State, parameter_shapes
from pipeline.initialisation.growth.deepen import key_value_owners, layer_origins
from pipeline.initialisation.growth.units import LAYER, Kind, axes_of, balanced_map, block, num_units


def coalesce(state: Mapping[str, torch.Tensor], there: NarrowBertConfig, here: NarrowBertConfig, depth: Depth) -> State:
    """Parameters of an export, with units and layers merged: a pure function of its arguments.

    Args:
        state: of a model ``there``, of any floating type, which the result has too.
        there: the larger model.
        here: the smaller one.
        depth: which layers are merged: those that growing by it takes from one.

    Raises:
        ValueError: layers that have no origin, see ``layer_origins``.
    """
    return _narrower(_shallower(state, there, here, depth), there, here)


def _narrower(state: Mapping[str, torch.Tensor], there: NarrowBertConfig, here: NarrowBertConfig) -> State:
    kinds: tuple[Kind, ...] = ("residual", "head", "inner")
    maps = {
        kind: balanced_map(num_units(here, kind), num_units(there, kind), block(there, kind), None) for kind in kinds
    }
    merged: State = {}
    for name, tensor in state.items():
        axes = axes_of(name)
        result = tensor.double()
        for dim, kind in enumerate((axes.rows, axes.columns)):
            if kind is not None:
                is_sum = axes.divides == kind and (dim == 1 or axes.columns is None)
                result = _merged(result, dim, maps[kind].index, is_sum)
        merged[name] = result.to(tensor.dtype)
    return merged


def _merged(tensor: torch.Tensor, dim: int, index: torch.Tensor, is_sum: bool) -> torch.Tensor:
    """Elements of a dimension that stand for the same one, added up or averaged."""
    size = int(index.max()) + 1
    shape = [size if n == dim else length for n, length in enumerate(tensor.shape)]
    total = torch.zeros(shape, dtype=tensor.dtype).index_add_(dim, index, tensor)
    if is_sum:
        return total
    count = torch.bincount(index, minlength=size).to(tensor.dtype)
    return total / count.reshape([-1 if n == dim else 1 for n in range(tensor.ndim)])


def _shallower(
    state: Mapping[str, torch.Tensor], there: NarrowBertConfig, here: NarrowBertConfig, depth: Depth
) -> State:
    sides = {
        "encoder": layer_origins(here.full_layers, there.full_layers, depth),
        "encoder_narrow": layer_origins(here.narrow_layers, there.narrow_layers, depth),
    }
    owners = key_value_owners(there)
    merged: State = {}
    for name in parameter_shapes(here):
        found = LAYER.fullmatch(name)
        if found is None:
            merged[name] = state[name]
            continue
        side, number, rest, kind = found[1], int(found[2]), found[3], found[4]
        members = [larger for larger, origin in enumerate(sides[side]) if origin.number == number]
        if side == "encoder_narrow" and rest in ("attention.self.key", "attention.self.value"):
            members = sorted({owners[member] for member in members})
        names = [f"bert.{side}.layer.{member}.{rest}.{kind}" for member in members]
        # The norm that skip_first_norm leaves out is in none but the layers above.
        tensors = [state[name] for name in names if name in state]
        merged[name] = torch.stack([tensor.double() for tensor in tensors]).mean(0).to(tensors[0].dtype)
    return merged


def interpolate(before: Mapping[str, torch.Tensor], grown: Mapping[str, torch.Tensor], alpha: float) -> State:
    """(1 - alpha) of a model and alpha of what grew out of its smaller one, in every parameter (there, section 3.3)."""
    return {
        name: torch.lerp(before[name].double(), grown[name].double(), alpha).to(before[name].dtype) for name in grown
    }
