"""Attention to a window: in blocks of neighbours, as a mask, and in FlexAttention's blocks for CUDA."""

from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.model import window
from pipeline.model.attention_mask import attention_mask, flex
from pipeline.model.window import windowed_attention
from tests.pipeline.model.reference import Reference
from tests.pipeline.model.small_models import LENGTH, build, check_that_documents_stand_alone, name_of, rows

OPTIONS: list[dict[str, Any]] = [
    {"attention_window": 2},
    {"attention_window": 8, "position": "rope", "rotary_base": 50.0, "local_rotary_base": 20.0},
    {"attention_window": 4, "position": "alibi", "normalization": "pre"},
    {"attention_window": 200, "narrow_kv": "shared"},
    {"attention_window": 4, "normalization": "pre", "skip_first_norm": True},
]
every_option = pytest.mark.parametrize("options", OPTIONS, ids=name_of)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks in the short rows of these tests."""
    monkeypatch.setattr(window, "_SMALLEST_BLOCK", 2)


@every_option
@pytest.mark.parametrize("layout", ["wf", "wf sf w:2sf", "w f w:s"])
def test_the_model_equals_its_definition(layout: str, options: dict[str, Any]) -> None:
    model, batch = build(layout, **options).eval(), rows()
    reference = Reference(model)
    with torch.no_grad():
        found = model.double().logits(batch["input_ids"], batch["narrow_positions"], batch["key_mask"])
        for row, length in enumerate(batch["key_mask"].sum(dim=(1, 2, 3)).tolist()):
            ids, positions = batch["input_ids"][row, :length].tolist(), batch["narrow_positions"][row].tolist()
            assert (found[row] - reference.logits(ids, positions)).abs().max() < 1e-5


def visible(radius: int, key_mask: torch.Tensor | None, document_ids: torch.Tensor | None, length: int) -> torch.Tensor:
    """The definition, over all pairs."""
    places = torch.arange(length)
    distance = (places[:, None] - places).abs()
    seen = (distance <= radius).expand(1, 1, -1, -1)
    if key_mask is not None:
        seen = seen & key_mask
    if document_ids is not None:
        seen = seen & (document_ids[:, None, :, None] == document_ids[:, None, None, :])
    return seen | (distance == 0)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@settings(max_examples=40)
@given(
    length=st.integers(1, 90), radius=st.integers(1, 100), smallest=st.sampled_from([1, 2, 8, 32]),
    padded=st.booleans(), isolated=st.booleans(), alibi=st.booleans(),
)  # fmt: skip
def test_blocks_are_the_mask_over_all_pairs(
    length: int, radius: int, smallest: int, padded: bool, isolated: bool, alibi: bool
) -> None:
    generator = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(3, 2, length, 8, generator=generator, requires_grad=True) for _ in range(3))
    lengths = torch.tensor([length, 1 + length // 2, 1])
    key_mask = (torch.arange(length) < lengths[:, None])[:, None, None] if padded else None
    document_ids = (torch.arange(length) // torch.tensor([[7], [3], [50]])) if isolated else None
    slopes = torch.tensor([0.25, 0.0625]) if alibi else None
    arguments = key_mask, document_ids, slopes, torch.arange(length), length, torch.float32
    with mock.patch.object(window, "_SMALLEST_BLOCK", smallest):
        blocks = attention_mask(*arguments, use_blocks=False, radius=radius).window_bias
    assert blocks is not None
    found = windowed_attention(q, k, v, blocks, 0.0)

    places = torch.arange(length)
    bias = torch.zeros(()) if slopes is None else -slopes[:, None, None] * (places[:, None] - places).abs()
    bias = bias.masked_fill(~visible(radius, key_mask, document_ids, length), float("-inf"))
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    gradients = (torch.autograd.grad(output.square().sum(), (q, k, v)) for output in (found, expected))
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        on_cuda = attention_mask(*arguments, use_blocks=True, radius=radius)
        torch.testing.assert_close(flex(q.detach(), k.detach(), v.detach(), on_cuda), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("width", [2, 6, 8])
def test_a_position_sees_half_the_window_on_either_side(width: int) -> None:
    # Measured by gradient: off by one, or a mask that is ignored, has been shipped elsewhere.
    model = build("wf", attention_window=width, position="rope").eval()
    embedded = torch.randn(1, LENGTH, 16, requires_grad=True)
    everything = torch.arange(LENGTH).unsqueeze(0)
    for place in range(LENGTH):
        (gradient,) = torch.autograd.grad(model.encoder(embedded, everything, None)[0, place].sum(), embedded)
        seen = gradient[0].abs().amax(dim=-1).nonzero().flatten().tolist()
        assert seen == [other for other in range(LENGTH) if abs(place - other) <= width // 2]


def test_a_window_of_twice_the_row_is_attention_to_all_of_it() -> None:
    options = {"attention_window": 2 * LENGTH, "position": "rope", "local_rotary_base": 50.0, "rotary_base": 50.0}
    batch = rows()
    inputs = batch["input_ids"], batch["narrow_positions"], batch["key_mask"]
    with torch.no_grad():
        window_alone, whole = (build(layout, **options).eval().logits(*inputs) for layout in ("wf w:sf", "sf s:sf"))
        torch.testing.assert_close(window_alone, whole, atol=1e-5, rtol=1e-5)
        narrower = build("wf w:sf", **options | {"attention_window": 4}).eval().logits(*inputs)
    assert (narrower - whole).abs().max() > 1e-2


def test_isolated_documents_equal_documents_alone() -> None:
    check_that_documents_stand_alone(build("wf sf w:sf", document_attention="isolated", attention_window=4).eval())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_that_sees_no_real_token_makes_nothing_nan(dtype: torch.dtype) -> None:
    model = build("3wf:sf", attention_window=2).to(dtype)
    ids, key_mask = torch.ones(1, LENGTH, dtype=torch.int64), torch.arange(LENGTH)[None, None, None] < 2
    loss = model(ids, torch.tensor([[0, 1]]), key_mask, ids[:, :2], torch.ones(1, 2, dtype=torch.bool)).loss_sum
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
