"""Muon for the hidden matrices, AdamW for the rest, under ZeRO 0 to 2 and tensor parallelism.

Muon (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024) replaces a matrix's momentum by
the nearest matrix whose singular values are near 1. Each matrix of a packed parameter is taken alone: query, key,
value, gate. The update is scaled to the length that AdamW's has, so that both share one learning rate and weight
decay (Liu et al., "Muon is scalable for LLM training", 2025, section 2.2).

Under ZeRO 1 and 2 a rank holds a slice of the flattened parameters, which cuts matrices anywhere. Each matrix has one
rank that orthogonalises it: the others send their pieces there, and get their part of the update back.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import torch

from pipeline.config import ModelConfig, OptimizerConfig
from pipeline.engine.pieces import Pieces
from pipeline.model.arithmetic import MUON_ITERATIONS
from pipeline.model.parameters import hidden_matrices
from pipeline.parallel.groups import data_parallel_group
from pipeline.parallel.whole_tensors import gather_shards, shard_of

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration: they maximise the slope at 0, so that small singular values grow fast (Jordan et al.)."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's, by their keys in the optimizer's state; Muon keeps its momentum as the first and has no second."""
UPDATE_RMS = 0.2
"""Root mean square of an update's elements, as AdamW's is (Liu et al. 2025, equation 4)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matrix:
    """A parameter that Muon updates."""

    parameter: torch.nn.Parameter
    """This tensor-parallel rank's shard of it."""
    num_parts: int
    """Matrices packed in the whole of it."""
    num_blocks: int
    """Its output features are ``[num_blocks, num_parts, the rest]``."""

    def split(self, whole: torch.Tensor) -> torch.Tensor:
        """[num_blocks * num_parts * n, inputs] -> [num_parts, num_blocks * n, inputs]."""
        inputs = whole.shape[1]
        packed = whole.reshape(self.num_blocks, self.num_parts, -1, inputs)
        return packed.transpose(0, 1).reshape(self.num_parts, -1, inputs)

    def pack(self, parts: torch.Tensor) -> torch.Tensor:
        """The inverse of ``split``."""
        inputs = parts.shape[2]
        packed = parts.reshape(self.num_parts, self.num_blocks, -1, inputs)
        return packed.transpose(0, 1).reshape(-1, inputs)


class Muon(torch.optim.AdamW):
    """AdamW whose first group is updated by Muon.

    Args:
        matrices: of the first group, in its order.
        rest: further groups, as AdamW takes them.
        config: of the optimizer.
        dtype: in which matrices are orthogonalised, and sent between ranks.
    """

    def __init__(
        self, matrices: list[Matrix], rest: list[dict[str, Any]], config: OptimizerConfig, dtype: torch.dtype
    ) -> None:
        own = {"params": [matrix.parameter for matrix in matrices], "weight_decay": config.weight_decay}
        super().__init__(
            [own | {"momentum": config.muon_momentum}, *rest],
            lr=config.lr,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_eps,
            fused=True,
        )
        self._matrices, self._dtype = matrices, dtype
        self._pieces: Pieces | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the groups that are here: DeepSpeed's ZeRO calls with one at a time."""
        groups = self.param_groups
        for group in groups:
            if _is_muon_group(group):
                self._update(group)
        self.param_groups = [group for group in groups if not _is_muon_group(group)]
        try:
            if self.param_groups:
                super().step(closure)
        finally:
            self.param_groups = groups

    def _update(self, group: dict[str, Any]) -> None:
        """Update the shards of all matrices, or this rank's slice of the flattened shards."""
        held: list[torch.Tensor] = group["params"]
        # The fused AdamW has this of ``update_weights`` as well: 1 where nothing may change.
        update = 1 - getattr(self, "found_inf", torch.zeros((), device=held[0].device))
        directions = [self._direction(tensor, group["momentum"], update) for tensor in held]
        if len(held) == len(self._matrices) and held[0] is self._matrices[0].parameter:
            updates = self._orthogonalised(self._matrices, directions)
        else:
            (direction,) = directions
            updates = [self._of_slice(direction)]
        for tensor, change in zip(held, updates, strict=True):
            rate = group["lr"] * update
            tensor.mul_(1 - rate * group["weight_decay"]).sub_(rate * change.to(tensor.dtype))

    def _direction(self, tensor: torch.Tensor, momentum: float, update: torch.Tensor) -> torch.Tensor:
        """Advance the momentum of a tensor; Nesterov's look ahead from there, in the dtype of the computation."""
        state = self.state[tensor]
        assert tensor.grad is not None
        gradient = torch.where(update > 0, tensor.grad, 0.0)
        state["step"] += update.to(state["step"].device)
        state["exp_avg"].add_((gradient - state["exp_avg"]) * ((1 - momentum) * update))
        return gradient.lerp(state["exp_avg"], momentum).to(self._dtype)

    def _of_slice(self, direction: torch.Tensor) -> torch.Tensor:
        """The update of this rank's slice of the flattened shards."""
        if self._pieces is None:
            shapes = [matrix.parameter.shape for matrix in self._matrices]
            sizes, costs = [rows * columns for rows, columns in shapes], [r * c * min(r, c) for r, c in shapes]
            self._pieces = Pieces(sizes, direction.numel(), costs, data_parallel_group())
        shards = self._pieces.collect(direction)
        mine = [self._matrices[index] for index in self._pieces.mine]
        shaped = [shard.view(matrix.parameter.shape) for matrix, shard in zip(mine, shards, strict=True)]
        updates = [update.reshape(-1) for update in self._orthogonalised(mine, shaped)]
        return self._pieces.give_back(updates, torch.zeros_like(direction))

    def _orthogonalised(self, matrices: list[Matrix], shards: list[torch.Tensor]) -> list[torch.Tensor]:
        """The updates of shards; matrices of one shape are computed together."""
        parts = [
            matrix.split(gather_shards(shard, matrix.parameter)) for matrix, shard in zip(matrices, shards, strict=True)
        ]
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, part in enumerate(parts):
            by_shape.setdefault(tuple(part.shape[1:]), []).append(index)
        for shape, indices in by_shape.items():
            together = orthogonalise(torch.cat([parts[index] for index in indices]))
            together *= UPDATE_RMS * math.sqrt(max(shape))
            for index, part in zip(indices, together.split([len(parts[index]) for index in indices]), strict=True):
                parts[index] = part
        return [shard_of(matrix.pack(part), matrix.parameter) for matrix, part in zip(matrices, parts, strict=True)]


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """U V^T of each matrix U S V^T, roughly: its singular values come out between 0.7 and 1.2 (Jordan et al. 2024).

    Args:
        matrices: [number, rows, columns]; computed in their dtype.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-30)
    for _ in range(MUON_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def moments_of_group(group: dict[str, Any]) -> tuple[str, ...]:
    """The moments of a parameter group's tensors, by their keys in the optimizer's state."""
    return MOMENTS[:1] if _is_muon_group(group) else MOMENTS


def kinds_of(parameter: torch.nn.Parameter) -> tuple[str, ...]:
    """What there is of a parameter of an engine's module, as checkpoints name it: weights and moments."""
    return ("weights", *(MOMENTS[:1] if is_orthogonalised(parameter) else MOMENTS))


def is_orthogonalised(parameter: torch.nn.Parameter) -> bool:
    """Whether Muon updates a parameter of an engine's module."""
    return getattr(parameter, "is_orthogonalised", False)


def muon_matrices(named_parameters: Iterable[tuple[str, torch.nn.Parameter]], model: ModelConfig) -> list[Matrix]:
    """The hidden matrices of a model; marks them for ``is_orthogonalised``."""
    table = {entry.name: entry for entry in hidden_matrices(model)}
    found = []
    for name, parameter in named_parameters:
        if name in table:
            parameter.is_orthogonalised = True  # type: ignore[attr-defined]
            entry = table[name]
            found.append(Matrix(parameter=parameter, num_parts=entry.num_parts, num_blocks=entry.num_blocks))
    return found


def _is_muon_group(group: dict[str, Any]) -> bool:
    return "momentum" in group
