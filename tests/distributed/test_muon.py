"""Muon over tensor parallel x ZeRO against a plain loop in one process, which knows each matrix by its place."""

import functools
from pathlib import Path

import pytest
import torch

from pipeline.config import OptimizerConfig
from tests.distributed.parity import Curve, muon_configuration, plain_adamw, plain_curve
from tests.distributed.test_parity import assert_curve, run_group
from tests.marks import long

HEADS, HEAD, HIDDEN, INNER = 4, 8, 32, 48
MATRICES = 2 * (3 + 1 + 2 + 1) + 4 * (1 + 1 + 2 + 1) + 2 * 2 + 1
"""Of ``2sf:4sf``, gated, two key/value projections: two full layers, four narrow ones, those projections, the head."""


def rows_of_matrices(name: str, rows: int) -> list[list[int]]:
    """For each matrix of a packed weight, its rows, in any order: Muon does not depend on it."""
    if "linear_qkv" in name:  # head by head: query, key, value
        return [[h * 3 * HEAD + part * HEAD + i for h in range(HEADS) for i in range(HEAD)] for part in range(3)]
    if "narrow_kv" in name:  # head by head: key and value of each projection
        parts = rows // HIDDEN
        return [
            [h * parts * HEAD + part * HEAD + i for h in range(HEADS) for i in range(HEAD)] for part in range(parts)
        ]
    if "linear_fc1" in name:  # in four blocks: gates, then values
        block = INNER // 4
        return [[b * 2 * block + part * block + i for b in range(4) for i in range(block)] for part in range(2)]
    return [list(range(rows))]


class PlainMuon:
    """One matrix at a time."""

    def __init__(self, named: list[tuple[str, torch.nn.Parameter]], options: OptimizerConfig) -> None:
        self._named, self._options = named, options
        self._momenta = {name: torch.zeros_like(parameter) for name, parameter in named}
        self.param_groups: list[dict[str, float]] = [{}]

    @torch.no_grad()
    def step(self) -> None:
        rate, beta = self.param_groups[0]["lr"], self._options.muon_momentum
        for name, parameter in self._named:
            assert parameter.grad is not None
            momentum = self._momenta[name]
            momentum.mul_(beta).add_((1 - beta) * parameter.grad)
            ahead = beta * momentum + (1 - beta) * parameter.grad
            parameter *= 1 - rate * self._options.weight_decay
            for rows in rows_of_matrices(name, parameter.shape[0]):
                matrix = ahead[rows]
                x = matrix / matrix.norm()
                for _ in range(5):
                    if x.shape[0] <= x.shape[1]:
                        x = 3.4445 * x - 4.7750 * (x @ x.T @ x) + 2.0315 * (x @ x.T @ x @ x.T @ x)
                    else:
                        x = 3.4445 * x - 4.7750 * (x @ (x.T @ x)) + 2.0315 * (x @ (x.T @ x) @ (x.T @ x))
                parameter[rows] -= rate * 0.2 * max(matrix.shape) ** 0.5 * x


def plain_muon(model: torch.nn.Module, options: OptimizerConfig) -> list[object]:
    named = list(model.named_parameters())
    hidden = [(n, p) for n, p in named if p.ndim == 2 and "embeddings" not in n]
    rest = [p for n, p in named if p.ndim == 1 or "embeddings" in n]
    assert sum(len(rows_of_matrices(name, parameter.shape[0])) for name, parameter in hidden) == MATRICES
    return [PlainMuon(hidden, options), plain_adamw(rest, options)]


@functools.cache
def expected() -> Curve:
    return plain_curve(muon_configuration(), plain_muon)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, long(4)])
def test_muon_is_that_of_one_process(tmp_path: Path, world_size: int) -> None:
    found = run_group("muon", world_size, tmp_path)
    assert len(found) == 8
    for name, result in found.items():
        assert_curve(name, result["curve"], expected())
        if "orthogonalised" in result:
            # Tensor-parallel ranks each compute the whole matrix; so do the others without ZeRO.
            split, stage = int(name[2]), int(name[-1])
            each = world_size if stage == 0 else split
            assert result["orthogonalised"] == each * 5 * MATRICES, name


@pytest.mark.long
def test_muons_checkpoints_move_between_topologies(tmp_path: Path) -> None:
    found = run_group("muon_checkpoints", 4, tmp_path)
    assert found["wrong"] == []
    assert_curve("five topologies in turn", found["curve"], expected())
