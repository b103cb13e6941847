import pytest
import torch

from pipeline.config import ModelConfig, OptimizerConfig
from pipeline.engine.optimizer import build_optimizer
from pipeline.model.masked_lm import NarrowBertForPretraining


def test_biases_and_norms_do_not_decay() -> None:
    model = NarrowBertForPretraining(
        ModelConfig(layout="sf:sf", hidden_size=8, num_attention_heads=2, ffn_hidden_size=16), vocab_size=20
    )
    names = {id(p): n for n, p in model.named_parameters()}
    decayed, plain = build_optimizer(model.named_parameters(), OptimizerConfig(weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert all("norm" not in names[id(p)] and "bias" not in names[id(p)] for p in decayed["params"])
    assert all("norm" in names[id(p)] or names[id(p)].endswith("bias") for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


def test_decay_shrinks_a_weight_without_gradient() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = build_optimizer([("weight", weight)], OptimizerConfig(lr=0.1, weight_decay=0.5))
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert weight.detach() == pytest.approx(torch.full((2, 2), 0.95))
