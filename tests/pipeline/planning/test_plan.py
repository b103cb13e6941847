"""What ``narrowbert plan`` prints."""

import dataclasses
from typing import Literal

import pytest

from data_prep.contract.command_line import UserError
from pipeline.config import RunConfig, TrainingConfig
from pipeline.engine.deepspeed_config import deepspeed_config
from pipeline.planning.plan import PlanOptions, plan


def bucket_elements(config: RunConfig) -> int:
    zero = deepspeed_config(config, 16)["zero_optimization"]
    assert isinstance(zero, dict)
    elements = zero["reduce_bucket_size"]
    assert isinstance(elements, int)
    return elements


def _shows_buffers(shown: str, size: int) -> bool:
    return any("to sum gradients" in line and f"{size / 2**30:.3f} GiB" in line for line in shown.splitlines())


def _at_stage(config: RunConfig, zero_stage: Literal[2]) -> RunConfig:
    return dataclasses.replace(config, training=dataclasses.replace(config.training, zero_stage=zero_stage))


def test_plan_prints_bytes_and_efficiency() -> None:
    config = RunConfig(training=TrainingConfig(micro_batch_size=27))

    def printed(**options: object) -> str:
        return str(plan(config, PlanOptions(processes=16, seq_length=512, vocab_size=30522, **options)))  # type: ignore[arg-type]

    shown = printed(nodes=2)
    assert "gradients, all_reduce" in shown
    # Two buffers of 50 million sums of four micro-batches, and what is sent of one in bf16.
    assert _shows_buffers(shown, (4 + 4 + 2) * bucket_elements(config))
    shown_zero2 = str(plan(_at_stage(config, 2), PlanOptions(processes=16, seq_length=512, vocab_size=30522)))
    assert _shows_buffers(shown_zero2, (2 + 2) * bucket_elements(config))
    assert "give --node_tokens_per_second" in shown
    shown = printed(nodes=2, node_tokens_per_second=1e6, network_gigabytes_per_second=50.0)
    line = next(line for line in shown.splitlines() if line.startswith("step on 2 nodes"))
    compute = 1728 * 512 / 2e6
    assert f"({compute:.4g} computing" in line
    assert "% efficient" in line
    with pytest.raises(UserError, match="spread evenly"):
        printed(nodes=3)
    with pytest.raises(UserError, match=r"network_gigabytes_per_second is 0"):
        printed(nodes=2, network_gigabytes_per_second=0.0)
