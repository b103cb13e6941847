"""Which tokens see each other: documents of a packed row, as a mask and as blocks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import flex_attention

from pipeline.model import encoder
from pipeline.model.attention_mask import AttentionMask, attention_mask, flex
from tests.pipeline.model.small_models import LENGTH, build, check_that_documents_stand_alone, every_layout, rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("position", ["absolute", "rope", "alibi"])
@every_layout
def test_isolated_documents_equal_documents_alone(layout: str, position: str, dtype: torch.dtype) -> None:
    check_that_documents_stand_alone(build(layout, position=position, document_attention="isolated").eval().to(dtype))


def test_shared_documents_do_see_each_other() -> None:
    batch = rows()
    inputs = batch["input_ids"], batch["narrow_positions"], batch["key_mask"], batch["document_ids"]
    isolated = build("sf:sf", document_attention="isolated").logits(*inputs)
    shared = build("sf:sf").logits(*inputs)
    assert (isolated - shared)[[0, 2]].abs().amax(dim=(1, 2)).min() > 1e-2
    assert torch.allclose(isolated[1], shared[1], atol=1e-5)  # a row of one document
    with pytest.raises(ValueError, match="give document_ids"):
        build("sf:sf", document_attention="isolated").logits(*inputs[:3])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("slopes", [None, torch.tensor([0.25, 0.0625])], ids=["plain", "alibi"])
@pytest.mark.parametrize("queries", [torch.arange(LENGTH), rows()["narrow_positions"]], ids=["full", "narrow"])
def test_the_block_form_for_cuda_sees_what_the_mask_shows(queries: torch.Tensor, slopes: torch.Tensor | None) -> None:
    # FlexAttention computes forward on CPU as well, which is enough to compare what may be seen.
    batch, generator = rows(), torch.Generator().manual_seed(1)
    q = torch.randn(3, 2, queries.shape[-1], 16, generator=generator)
    k, v = (torch.randn(3, 2, LENGTH, 16, generator=generator) for _ in range(2))
    mask, blocks = (
        attention_mask(
            batch["key_mask"], batch["document_ids"], slopes, queries, LENGTH, q.dtype, use_blocks=use_blocks
        )
        for use_blocks in (False, True)
    )  # fmt: skip
    assert mask.bias is not None
    assert blocks.bias is None
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.bias)
    with torch.no_grad():
        assert torch.allclose(flex(q, k, v, blocks), expected, atol=1e-5)
        everything = F.scaled_dot_product_attention(q, k, v)
        assert not torch.allclose(flex(q, k, v, blocks), everything, atol=1e-2)


def test_without_padding_documents_and_alibi_there_is_no_mask() -> None:
    mask = attention_mask(None, None, None, torch.arange(4), 4, torch.float32, use_blocks=True)
    assert mask == AttentionMask()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("position", ["absolute", "alibi", "rope"])
def test_training_by_blocks_as_on_cuda_has_the_gradients_of_the_mask(
    position: str, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # FlexAttention refuses to train on CPU, though uncompiled it can.
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    model = build("sf wf:2sf", position=position, document_attention="isolated", attention_window=4)
    batch = rows()
    inputs = (
        batch["input_ids"], batch["narrow_positions"], batch["key_mask"] if padded else None, batch["labels"],
        batch["label_mask"], batch["document_ids"],
    )  # fmt: skip

    def trained(run: Callable[..., Any]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        loss = run(*inputs).loss_sum
        loss.backward()
        return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    expected_loss, expected = trained(model)
    calls: list[bool] = []

    def by_blocks(*arguments: Any, use_blocks: bool, radius: int | None) -> AttentionMask:
        assert not use_blocks  # this is no CUDA device
        calls.append(True)
        return attention_mask(*arguments, use_blocks=True, radius=radius)

    monkeypatch.setattr(encoder, "attention_mask", by_blocks)
    # As on CUDA, where FlexAttention is compiled inside of a compiled sublayer.
    for run in (model, torch.compile(model, backend="aot_eager", dynamic=False, fullgraph=True)):
        loss, gradients = trained(run)
        torch.testing.assert_close(loss, expected_loss)
        torch.testing.assert_close(gradients, expected, atol=1e-5, rtol=1e-4)
    assert calls
