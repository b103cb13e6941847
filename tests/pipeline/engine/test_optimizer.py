from typing import Literal

import pytest
import torch

from pipeline.config import ModelConfig, OptimizerConfig, RunConfig
from pipeline.engine.muon import moments_of_group
from pipeline.engine.optimizer import build_optimizer
from pipeline.model.masked_lm import NarrowBertForPretraining


def test_biases_and_norms_do_not_decay() -> None:
    shape = ModelConfig(layout="sf:sf", hidden_size=8, num_attention_heads=2, ffn_hidden_size=16)
    model = NarrowBertForPretraining(shape, vocab_size=20)
    config = RunConfig(model=shape, optimizer=OptimizerConfig(weight_decay=0.1))
    names = {id(p): n for n, p in model.named_parameters()}
    decayed, plain = build_optimizer(model, config).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert all("norm" not in names[id(p)] and "bias" not in names[id(p)] for p in decayed["params"])
    assert all("norm" in names[id(p)] or names[id(p)].endswith("bias") for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_decay_shrinks_a_weight_without_gradient(kind: Literal["adamw", "muon"]) -> None:
    shape = ModelConfig(layout="sf:sf", hidden_size=8, num_attention_heads=2, ffn_hidden_size=16)
    model = NarrowBertForPretraining(shape, vocab_size=20)
    optimizer = build_optimizer(
        model, RunConfig(model=shape, optimizer=OptimizerConfig(type=kind, lr=0.1, weight_decay=0.5))
    )
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.tensor(0.0),
                **{moment: torch.zeros_like(parameter) for moment in moments_of_group(group)},
            }
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 0.95 if parameter.ndim > 1 else 1.0
        assert torch.allclose(parameter, before[name] * factor), name
