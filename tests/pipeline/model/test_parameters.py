"""The parameter table, compared with the model that torch builds."""

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch

from pipeline.config import ModelConfig
from pipeline.layout import parse_layout
from pipeline.model.masked_lm import NarrowBertForPretraining
from pipeline.model.parameters import (
    VOCABULARY_PARAMETERS,
    Parameter,
    count_parameters,
    model_parameters,
    padded_vocab_size,
)
from pipeline.parallel.whole_tensors import full_shape
from tests.tensor_shards import as_tensor_parallel_rank

VOCAB = 77
LAYOUTS = ["3sf", "wf sf:2sf", "sf:3sf", "sf 2s:2f", "s:sff", ":2sf"]
OPTIONS: dict[str, list[Any]] = {
    "normalization": ["post", "pre"],
    "norm": ["layernorm", "rmsnorm"],
    "position": ["absolute", "rope", "alibi"],
    "activation": ["gelu", "geglu", "swiglu"],
    "bias": [True, False],
    "narrow_kv": ["per_layer", "shared", "grouped:2"],
}


def configuration(layout: str, **options: Any) -> ModelConfig:
    sizes = {"hidden_size": 24, "num_attention_heads": 6, "ffn_hidden_size": 56, "max_position_embeddings": 40}
    return ModelConfig(layout=layout, **sizes, **options)  # type: ignore[arg-type]


def every_configuration() -> list[ModelConfig]:
    values = itertools.product(*OPTIONS.values())
    combined = [dict(zip(OPTIONS, combination, strict=True)) for combination in values]
    skipping = [configuration(text, normalization="pre", skip_first_norm=True) for text in LAYOUTS if text[0] != ":"]
    return [*skipping, *(configuration(layout, **options) for layout in LAYOUTS for options in combined)]


def built(config: ModelConfig, tensor_parallel_size: int) -> dict[str, torch.nn.Parameter]:
    with torch.device("meta"):
        model = NarrowBertForPretraining(config, VOCAB, padded_vocab_size(VOCAB, tensor_parallel_size))
    return dict(model.named_parameters())


def rank_shape(parameter: Parameter, size: int) -> tuple[int, ...]:
    return tuple(n // size if d == parameter.partition_dim else n for d, n in enumerate(parameter.shape))


def partition_of(parameter: torch.nn.Parameter) -> int | None:
    return getattr(parameter, "partition_dim") if getattr(parameter, "tensor_model_parallel", False) else None  # noqa: B009


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_table_is_the_models_parameters_under_every_option(size: int) -> None:
    with as_tensor_parallel_rank(0, size):
        for config in every_configuration():
            real = built(config, size)
            table = model_parameters(config, VOCAB)
            allocated = model_parameters(config, padded_vocab_size(VOCAB, size))
            assert sorted(p.name for p in table) == sorted(real), config
            assert {p.name: p.shape for p in table} == {n: full_shape(p) for n, p in real.items()}, config
            assert {p.name: rank_shape(p, size) for p in allocated} == {n: p.shape for n, p in real.items()}, config
            assert {p.name: p.rank_elements(size) for p in allocated} == {n: p.numel() for n, p in real.items()}
            assert {p.name: p.partition_dim for p in table} == {n: partition_of(p) for n, p in real.items()}, config
            assert count_parameters(config, VOCAB) == sum(math.prod(full_shape(p)) for p in real.values())


@pytest.mark.parametrize("size", [1, 2])
def test_table_is_the_models_parameters(size: int) -> None:
    with as_tensor_parallel_rank(0, size):
        for config in every_configuration()[::17]:
            real = built(config, size)
            allocated = model_parameters(config, padded_vocab_size(VOCAB, size))
            assert {p.name: (rank_shape(p, size), p.partition_dim) for p in allocated} == {
                name: (tuple(p.shape), partition_of(p)) for name, p in real.items()
            }


def test_each_named_option_leaves_its_parameters_out() -> None:
    without = {"normalization": "post", "norm": "rmsnorm", "position": "rope", "bias": False}
    for config in every_configuration():
        table = model_parameters(config, VOCAB)
        for option, value in without.items():
            left = {p.name for p in model_parameters(dataclasses.replace(config, **{option: value}), VOCAB)}
            assert left == {p.name for p in table if option not in p.options}, (config, option)


def test_packed_features_divide_into_blocks_and_parts_on_every_rank() -> None:
    for config in every_configuration():
        for parameter in model_parameters(config, VOCAB):
            if parameter.partition_dim == 0 and parameter.name not in VOCABULARY_PARAMETERS:
                assert parameter.num_blocks % 2 == 0, "two ranks hold whole blocks"
                assert parameter.shape[0] % (parameter.num_blocks * parameter.num_parts) == 0


def test_another_layout_in_place_of_the_models() -> None:
    narrowed, control = configuration("sf:2sf"), configuration("3sf")
    assert model_parameters(narrowed, VOCAB, parse_layout("3sf")) == model_parameters(control, VOCAB)


def test_bert_base_has_its_published_size() -> None:
    # Devlin et al. 2019 round to 110M; with the masked-LM head and without the pooler: 109,514,298.
    assert count_parameters(ModelConfig(layout="12sf"), 30_522) == 109_514_298
