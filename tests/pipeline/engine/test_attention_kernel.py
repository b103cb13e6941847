"""The kernel that a run says it takes is the one that its model calls."""

import pytest
import torch

from pipeline.config import ModelConfig, RunConfig, TrainingConfig
from pipeline.engine.attention_kernel import attention_kernel
from pipeline.model.arithmetic import RowShape
from tests.pipeline.model.small_models import LENGTH, VOCAB, build, rows


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("document_attention", ["shared", "isolated"])
def test_it_is_what_the_model_calls(dtype: torch.dtype, dropout: float, document_attention: str) -> None:
    options = {"attention_dropout": dropout, "document_attention": document_attention}
    model, batch = build("sf:sf", **options).to(dtype), rows()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        model.logits(batch["input_ids"], batch["narrow_positions"], batch["key_mask"], batch["document_ids"])
    called = {event.key for event in recorded.key_averages()}
    fused = "aten::_scaled_dot_product_flash_attention_for_cpu" in called

    config = RunConfig(
        model=model.config, training=TrainingConfig(precision="fp32" if dtype == torch.float32 else "bf16")
    )
    shape = RowShape(seq_length=LENGTH, masked_per_row=2, vocab_size=VOCAB)
    found = attention_kernel(config, shape, torch.device("cpu"), padded=True)
    assert found == ("torch's fused CPU kernel" if fused else "two products, all scores in memory")
    assert fused == (dtype == torch.float32 and not dropout)


def test_the_random_state_stays() -> None:
    config = RunConfig(model=ModelConfig(), training=TrainingConfig(precision="fp32", micro_batch_size=2))
    before = torch.random.get_rng_state()
    attention_kernel(config, RowShape(seq_length=8, masked_per_row=1, vocab_size=9), torch.device("cpu"), padded=False)
    assert torch.equal(torch.random.get_rng_state(), before)
