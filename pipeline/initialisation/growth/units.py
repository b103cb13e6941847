"""Which unit of a smaller model each unit of a larger one stands for, and what each parameter's rows and columns are.

Three kinds of units make up a model: the dimensions of the residual stream, attention heads, and the inner units of
the feed-forward sublayers. Each kind has one map for the whole model, since what is added up in the residual stream
has to mean the same everywhere.
"""

import dataclasses
import re
from typing import Literal

import torch

from pipeline.config import Depth
from pipeline.export.configuration_narrowbert import NarrowBertConfig

Kind = Literal["residual", "head", "inner"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axes:
    """What the rows (outputs) and columns (inputs) of a parameter are."""

    rows: Kind | None = None
    """None: something that does not change, such as tokens."""
    columns: Kind | None = None
    """None: there are none, or they do not change."""
    divides: Kind | None = None
    """Of which the copies of a unit divide its value among themselves: its columns, or the rows of the head's norm."""


_IN_LAYER = (
    (r"attention\.self\.(query|key|value)", Axes(rows="head", columns="residual", divides="residual")),
    (r"attention\.output\.dense", Axes(rows="residual", columns="head", divides="head")),
    (r"intermediate\.(dense|gate)", Axes(rows="inner", columns="residual", divides="residual")),
    (r"output\.dense", Axes(rows="residual", columns="inner", divides="inner")),
    (r"(attention\.)?output\.LayerNorm", Axes(rows="residual")),
)
_OUTSIDE = (
    (r"bert\.embeddings\.\w+_embeddings", Axes(columns="residual")),
    (r"bert\.(embeddings\.LayerNorm|frozen_norm|final_norm)", Axes(rows="residual")),
    (r"cls\.predictions\.transform\.dense", Axes(rows="residual", columns="residual", divides="residual")),
    # The decoder is the table of words, whose columns are copied: what its inputs are divided by stands here.
    (r"cls\.predictions\.transform\.LayerNorm", Axes(rows="residual", divides="residual")),
    (r"cls\.predictions", Axes()),
)
LAYER = re.compile(r"bert\.(encoder|encoder_narrow)\.layer\.([0-9]+)\.(.+)\.(weight|bias)")


def axes_of(name: str) -> Axes:
    """What the rows and columns of a parameter of the export are.

    Raises:
        ValueError: it is no parameter of an export.
    """
    found = LAYER.fullmatch(name)
    module, kind = (found[3], found[4]) if found else name.rsplit(".", 1)
    for pattern, axes in _IN_LAYER if found else _OUTSIDE:
        if re.fullmatch(pattern, module):
            is_divided_row = axes.divides is not None and axes.columns is None
            return axes if kind == "weight" or is_divided_row else dataclasses.replace(axes, columns=None, divides=None)
    raise ValueError(f"{name} is no parameter that can grow")


def num_units(config: NarrowBertConfig, kind: Kind) -> int:
    """How many units of a kind a model has."""
    return {
        "residual": config.hidden_size,
        "head": config.num_attention_heads,
        "inner": config.intermediate_size,
    }[kind]


def block(config: NarrowBertConfig, kind: Kind) -> int:
    """Elements of a unit: those of a head stay together."""
    return config.hidden_size // config.num_attention_heads if kind == "head" else 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitMap:
    """Units of a kind in a larger model as copies of those in a smaller one."""

    of: torch.Tensor
    """[larger]: the unit of the smaller model that each stands for."""
    share: torch.Tensor
    """[larger], fp64: of its value; those of all copies of a unit add up to 1."""
    num_small: int
    """Units of the smaller model."""
    block: int
    """Elements of a unit."""

    @property
    def index(self) -> torch.Tensor:
        """[larger x block]: the element of the smaller model that each stands for."""
        return (self.of[:, None] * self.block + torch.arange(self.block)).flatten()

    @property
    def shares(self) -> torch.Tensor:
        """[larger x block], fp64."""
        return self.share.repeat_interleave(self.block)

    @property
    def is_new(self) -> torch.Tensor:
        """[larger x block], bool: elements of copies, not of the units that came first."""
        return (torch.arange(len(self.of)) >= self.num_small).repeat_interleave(self.block)


def balanced_map(small: int, large: int, unit_block: int, generator: torch.Generator | None) -> UnitMap:
    """Copies in turn: unit j of the larger model stands for unit j mod ``small``.

    Every unit has as many copies as another, to one: a norm's mean and variance weigh a unit by its copies, so that
    maps drawn at random, those of the paper (Chen et al., "bert2BERT", ACL 2022, section 3.2), change what a model
    computes. At an integer ratio nothing changes.

    Args:
        small, large: units.
        unit_block: elements of a unit.
        generator: for shares that differ by up to 50% from equal ones before they are made to add up to 1. Equal ones
            keep the copies of a unit equal in all training without dropout. None: equal.
    """
    of = torch.arange(large) % small
    weight = torch.ones(large, dtype=torch.float64)
    if generator is not None and large > small:
        weight += torch.rand(large, dtype=torch.float64, generator=generator) - 0.5
    total = torch.zeros(small, dtype=torch.float64).index_add_(0, of, weight)
    return UnitMap(of=of, share=weight / total[of], num_small=small, block=unit_block)


def centred_map(small: int, large: int, unit_block: int) -> UnitMap:
    """The smaller model in the middle of the larger one, which goes on around it; nothing is divided.

    So ModernBERT-large began with the weights of its base model (Warner et al. 2024, section 2.2.2, and their code).
    """
    of = (torch.arange(large) - (large - small) // 2) % small
    return UnitMap(of=of, share=torch.ones(large, dtype=torch.float64), num_small=small, block=unit_block)


def depth_map(small: int, large: int, depth: Depth) -> list[int]:
    """Layer of the smaller model that each layer of the larger one stands for.

    ``stack`` puts whole copies on top of each other, and the top layers on top of those (Chen et al. 2022, algorithm
    1); the others repeat every layer in place.
    """
    if depth != "stack":
        return [number * small // large for number in range(large)]
    whole = large // small * small
    return [number % small if number < whole else small - (large - number) for number in range(large)]
