import itertools
import math

import pytest
import torch

from pipeline.config import ModelConfig, OptimizerConfig
from pipeline.engine.optimizer import build_optimizer, learning_rate
from pipeline.model.masked_lm import NarrowBertForPretraining


@pytest.mark.parametrize("style", ["linear", "cosine"])
def test_learning_rate_warms_up_then_decays(style: str) -> None:
    config = OptimizerConfig(lr=2.0, min_lr=0.5, lr_warmup_fraction=0.1, lr_decay_style=style)  # type: ignore[arg-type]
    rates = [learning_rate(step, 100, config) for step in range(101)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(2.0)
    assert rates[100] == pytest.approx(0.5)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    halfway = 0.5 + 1.5 * 0.5  # both shapes pass the middle of the decay at half
    assert rates[55] == pytest.approx(halfway)
    quarter = {"linear": 0.75, "cosine": 0.5 * (1 + math.cos(math.pi / 4))}[style]
    assert learning_rate(10 + 9 * 25 // 10, 100, config) == pytest.approx(0.5 + 1.5 * quarter, abs=0.02)


def test_no_warmup_starts_at_the_peak() -> None:
    assert learning_rate(0, 10, OptimizerConfig(lr=1.0, lr_warmup_fraction=0.0)) == 1.0


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
