"""Parts of parameters, and the whole that they make again."""

import pytest
import torch

from pipeline.config import ModelConfig
from pipeline.model.masked_lm import NarrowBertForPretraining
from pipeline.model.parameters import model_parameters, padded_vocab_size
from pipeline.parallel.whole_tensors import full_shape, is_partitioned, join_shards, shard_of, shard_shape
from tests.tensor_shards import as_tensor_parallel_rank

VOCAB = 77
CONFIG = ModelConfig(
    layout="sf:2sf", hidden_size=24, num_attention_heads=4, ffn_hidden_size=56, max_position_embeddings=40,
    normalization="pre", activation="geglu",
)  # fmt: skip


def parameters(size: int) -> dict[str, torch.nn.Parameter]:
    return dict(NarrowBertForPretraining(CONFIG, VOCAB, padded_vocab_size(VOCAB, size)).named_parameters())


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_shards_of_all_ranks_join_to_the_whole(size: int) -> None:
    generator = torch.Generator().manual_seed(1)
    wholes = {p.name: torch.randn(p.shape, generator=generator) for p in model_parameters(CONFIG, VOCAB)}
    shards: dict[str, list[torch.Tensor]] = {name: [] for name in wholes}
    for rank in range(size):
        with as_tensor_parallel_rank(rank, size):
            for name, parameter in parameters(size).items():
                assert full_shape(parameter) == wholes[name].shape
                shards[name].append(shard_of(wholes[name], parameter))
                assert shards[name][-1].shape == shard_shape(parameter) == parameter.shape
    with as_tensor_parallel_rank(0, size):
        for name, parameter in parameters(size).items():
            assert is_partitioned(parameter) == (size > 1 and not shards[name][0].equal(shards[name][1]))
            assert join_shards(shards[name], parameter).equal(wholes[name]), name


def test_padding_of_the_vocabulary_is_zero() -> None:
    with as_tensor_parallel_rank(1, 2):  # the second rank holds nothing but padding: 128 of 256 come first
        parameter = parameters(2)["embeddings.word_embeddings.weight"]
        assert parameter.count_nonzero() == 0
        assert shard_of(torch.ones(VOCAB, CONFIG.hidden_size), parameter).count_nonzero() == 0
