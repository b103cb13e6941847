"""Every option of the model against its definition, and against finite differences."""

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.pipeline.model.reference import Reference
from tests.pipeline.model.small_models import LAYOUTS, OPTIONS, build, every_layout, every_option, name_of, rows


@every_option
@every_layout
def test_the_model_equals_its_definition(layout: str, options: dict[str, Any]) -> None:
    model, batch = build(layout, **options).eval(), rows()
    reference = Reference(model)
    inputs = batch["input_ids"], batch["narrow_positions"], batch["key_mask"]
    with torch.no_grad():
        fused = model.logits(*inputs)  # fp32 takes torch's fused attention, any other type plain products
        plain = model.double().logits(*inputs)
        for row, length in enumerate(batch["key_mask"].sum(dim=(1, 2, 3)).tolist()):
            ids, positions = batch["input_ids"][row, :length].tolist(), batch["narrow_positions"][row].tolist()
            expected = reference.logits(ids, positions)
            assert (plain[row] - expected).abs().max() < 1e-5  # rope's angles are fp32
            assert (fused[row] - expected).abs().max() < 1e-4


MIXTURE = "sf s:f 2s f s"
ISOLATED = [{"document_attention": "isolated", "position": position} for position in ("absolute", "alibi")]
# Every option where every kind of sublayer is, and every layout with none and with most of them.
CASES = [(MIXTURE, options) for options in OPTIONS + ISOLATED]
CASES += [("wf s w:2sf", {"position": "rope", "attention_window": 4, "local_rotary_base": 30.0})]
CASES += [(layout, options) for layout in LAYOUTS if layout != MIXTURE for options in (OPTIONS[0], OPTIONS[-1])]


@pytest.mark.parametrize(
    ("layout", "options"), CASES, ids=lambda case: case if isinstance(case, str) else name_of(case)
)
def test_gradients_of_every_parameter_are_the_finite_differences(layout: str, options: dict[str, Any]) -> None:
    model, batch = build(layout, heads=2, hidden_size=8, ffn_hidden_size=6, **options).double(), rows()
    inputs = (batch[name] for name in ("input_ids", "narrow_positions", "key_mask", "document_ids"))
    logits = functools.partial(model.logits, *inputs)

    def loss() -> torch.Tensor:  # in fp64: the model's own loss computes in fp32
        return F.cross_entropy(logits().flatten(0, 1), batch["labels"].flatten())

    loss().backward()
    step = 1e-5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
            direction = torch.randn_like(parameter)
            losses = []
            for move in (step, -2 * step):
                parameter.add_(direction, alpha=move)
                losses.append(loss())
            parameter.add_(direction, alpha=step)
            difference = (losses[0] - losses[1]) / (2 * step)
            assert torch.isclose((parameter.grad * direction).sum(), difference, rtol=1e-5, atol=1e-8), name
