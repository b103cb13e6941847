"""Recomputation in the backward pass: the same gradients, less memory."""

import dataclasses
from typing import Any

import pytest
import torch

from pipeline.model.masked_lm import NarrowBertForPretraining
from tests.pipeline.model.small_models import (
    OPTIONS,
    VOCAB,
    build,
    every_layout,
    name_of,
    rows,
)


@pytest.mark.parametrize("options", [{}, OPTIONS[-2], OPTIONS[-1]], ids=name_of)
@every_layout
def test_recomputation_gives_the_same_gradients_to_the_bit_with_dropout(layout: str, options: dict[str, Any]) -> None:
    losses, gradients = [], []
    for recompute in (False, True):
        dropout = {"hidden_dropout": 0.2, "attention_dropout": 0.2, "recompute": recompute}
        model = build(layout, **options, **dropout)
        torch.manual_seed(11)
        losses.append(model(**rows()).loss_sum)
        losses[-1].backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert losses[0] == losses[1]
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        assert gradient.equal(gradients[1][name]), name


def test_recomputation_keeps_less() -> None:
    def kept_bytes(recompute: bool) -> int:
        model, seen = build("4sf:4sf", hidden_size=32, ffn_hidden_size=128, recompute=recompute), {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model(**rows())
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        del output
        return sum(size for pointer, size in seen.items() if pointer not in weights)

    assert kept_bytes(True) < 0.5 * kept_bytes(False)


def test_recompute_changes_no_parameter_name() -> None:
    model = build("sf:2sf")
    again = NarrowBertForPretraining(dataclasses.replace(model.config, recompute=True), VOCAB)
    assert list(model.state_dict()) == list(again.state_dict())
