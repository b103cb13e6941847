import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config import ModelConfig
from pipeline.engine.muon import Matrix, muon_matrices, orthogonalise
from pipeline.model.arithmetic import orthogonalisation_flops
from pipeline.model.masked_lm import NarrowBertForPretraining

SHAPE = ModelConfig(
    layout="2sf:2sf", hidden_size=32, num_attention_heads=4, ffn_hidden_size=48, activation="geglu", position="rope"
)


@pytest.mark.parametrize("shape", [(24, 24), (16, 48), (48, 16)])
@pytest.mark.parametrize("scale", [1e-6, 1e4])
def test_singular_values_come_near_one_and_singular_vectors_stay(shape: tuple[int, int], scale: float) -> None:
    torch.manual_seed(0)
    matrices = scale * torch.randn(3, *shape)
    found = orthogonalise(matrices)
    u, values, v = torch.linalg.svd(matrices, full_matrices=False)
    of_found = u.mT @ found @ v.mT
    diagonal = of_found.diagonal(dim1=1, dim2=2)
    assert (of_found - torch.diag_embed(diagonal)).abs().max() < 1e-4
    # Below a hundredth of the largest, five iterations are not enough.
    large = values > 0.02 * values[:, :1]
    assert large.float().mean() > 0.9
    assert diagonal[large].min() > 0.6
    assert diagonal[large].max() < 1.25


def test_packed_matrices_are_taken_apart_and_put_back() -> None:
    matrix = Matrix(parameter=torch.nn.Parameter(torch.empty(0)), num_parts=2, num_blocks=3)
    whole = torch.arange(12.0)[:, None].expand(12, 5)
    parts = matrix.split(whole)
    assert parts[:, :, 0].tolist() == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]
    assert torch.equal(matrix.pack(parts), whole)


def test_predicted_arithmetic_is_that_of_the_iterations() -> None:
    model = NarrowBertForPretraining(SHAPE, vocab_size=20)
    with FlopCounterMode(display=False) as counter:
        for matrix in muon_matrices(model.named_parameters(), SHAPE):
            orthogonalise(matrix.split(matrix.parameter.detach()))
    assert counter.get_total_flops() == orthogonalisation_flops(SHAPE)
