"""A model of more heads, inner units and dimensions out of a smaller one of the same layers.

After Chen et al., "bert2BERT: Towards Reusable Pretrained Language Models" (ACL 2022), section 3: ``fpi`` keeps what
the model computes at integer ratios, ``aki`` takes the new heads and inner units from the layer above. ``tile`` repeats
the smaller model around its middle and divides nothing. ``zero`` adds dimensions that hold zeros, which for RMSNorm is
exact at any ratio.
"""

import math
from collections.abc import Mapping

import torch

from pipeline.config import GrowthMethod
from pipeline.export.configuration_narrowbert import NarrowBertConfig
from pipeline.export.names import State, parameter_shapes
from pipeline.initialisation.growth.units import (
    LAYER,
    Axes,
    Kind,
    UnitMap,
    axes_of,
    balanced_map,
    block,
    centred_map,
    num_units,
)

KINDS: tuple[Kind, ...] = ("residual", "head", "inner")


def widen(
    state: Mapping[str, torch.Tensor], there: NarrowBertConfig, here: NarrowBertConfig, method: GrowthMethod, seed: int
) -> State:
    """Parameters of an export, wider: a pure function of its arguments, the same on every rank.

    Args:
        state: of a model ``there``, of any floating type, which the result has too.
        there: the smaller model.
        here: the larger one, of the same layout.
        seed: of the shares, and of what ``zero`` draws.
    """
    generator = torch.Generator().manual_seed(seed)
    maps: dict[Kind, UnitMap] = {}
    for kind in KINDS:
        small, large = num_units(there, kind), num_units(here, kind)
        if method == "tile":
            maps[kind] = centred_map(small, large, block(there, kind))
        else:
            maps[kind] = balanced_map(small, large, block(there, kind), generator)
    if method == "zero":
        return _with_zeros(state, maps, here, generator)
    return {
        name: _copied(tensor, axes_of(name), maps, _above(name, state) if method == "aki" else None)
        for name, tensor in state.items()
    }


def _copied(tensor: torch.Tensor, axes: Axes, maps: Mapping[Kind, UnitMap], above: torch.Tensor | None) -> torch.Tensor:
    """A parameter whose units are copied, divided where its axes say so; new ones are those of ``above``."""
    rows = maps.get(axes.rows) if axes.rows else None
    columns = maps.get(axes.columns) if axes.columns else None
    grown = _indexed(tensor, rows, columns)
    if above is not None:
        own_units = {"head", "inner"}  # the residual stream is one for all layers
        other = _indexed(above, rows, columns)
        if rows is not None and axes.rows in own_units:
            grown[rows.is_new] = other[rows.is_new]
        if columns is not None and axes.columns in own_units:
            grown[:, columns.is_new] = other[:, columns.is_new]
    if axes.divides:
        shares = maps[axes.divides].shares
        grown = (grown.double() * shares).to(tensor.dtype)
    return grown


def _indexed(tensor: torch.Tensor, rows: UnitMap | None, columns: UnitMap | None) -> torch.Tensor:
    grown = tensor if rows is None else tensor[rows.index]
    return grown.clone() if columns is None else grown[:, columns.index]


def _above(name: str, state: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """The same parameter of the next layer, which may be the first right of ``:``; None where there is none."""
    found = LAYER.fullmatch(name)
    if found is None:
        return None
    side, number, rest = found[1], int(found[2]), f"{found[3]}.{found[4]}"
    above = state.get(f"bert.{side}.layer.{number + 1}.{rest}")
    if (
        above is None
        and side == "encoder"
        and not any(other.startswith(f"bert.encoder.layer.{number + 1}.") for other in state)
    ):
        above = state.get(f"bert.encoder_narrow.layer.0.{rest}")
    return above


def _with_zeros(
    state: Mapping[str, torch.Tensor], maps: Mapping[Kind, UnitMap], here: NarrowBertConfig, generator: torch.Generator
) -> State:
    """New dimensions of the residual stream hold zeros, and new heads and inner units give nothing to it.

    What is read of new dimensions is drawn, so that no two units are equal. RMSNorm divides by the root mean square
    over more dimensions, which its gains make up for (but for its epsilon).
    """
    gain = math.sqrt(maps["residual"].num_small / len(maps["residual"].of))
    grown: State = {}
    for name, shape in parameter_shapes(here).items():
        axes, tensor = axes_of(name), state[name]
        if "norm" in name.lower():  # RMSNorm's gains: it has no bias
            gains = torch.ones(shape, dtype=torch.float64)
            gains[: len(tensor)] = tensor
            grown[name] = (gains * gain).to(tensor.dtype)
            continue
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64) * here.initializer_range
        new = drawn.to(tensor.dtype)
        if axes.rows == "residual":
            new[tensor.shape[0] :] = 0
        if axes.columns in ("head", "inner") or (axes.columns == "residual" and axes.rows is None):
            new[:, tensor.shape[1] :] = 0
        if tensor.ndim == 1:
            new[tensor.shape[0] :] = 0
        new[tuple(slice(0, size) for size in tensor.shape)] = tensor
        grown[name] = new
    return grown
