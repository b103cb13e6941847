"""What ``narrowbert plan`` prints."""

import dataclasses
from typing import Literal

import pytest

from data_prep.contract.command_line import UserError
from pipeline.config import OptimizerConfig, RunConfig, TrainingConfig
from pipeline.engine.deepspeed_config import deepspeed_config
from pipeline.planning.plan import Plan, PlanOptions, plan


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


def test_plan_follows_the_mask_rate() -> None:
    def planned(*rates: tuple[int, float], masked: int = 154) -> Plan:
        training = TrainingConfig(micro_batch_size=27, train_steps=100, mask_rate=rates)
        options = PlanOptions(seq_length=512, vocab_size=30522, masked_per_row=masked, tokens_per_second=1e6)
        return plan(RunConfig(training=training), options)

    full, falling = planned(), planned((0, 0.3), (40, 0.15), (90, 0.05), (100, 0.01))
    each = [planned(masked=masked) for masked in (154, 77, 26)]
    assert str(planned((0, 0.3))) == str(full)
    assert falling.training_flops == pytest.approx(
        0.4 * each[0].training_flops + 0.5 * each[1].training_flops + 0.1 * each[2].training_flops
    )
    control = [one.control_training_flops for one in each]
    mean_control = 0.4 * control[0] + 0.5 * control[1] + 0.1 * control[2]
    assert falling.predicted_speedup == pytest.approx(mean_control / falling.training_flops)
    lines = dict(falling.lines)
    assert lines["from step 40 on"].startswith("77 masked (15.0%)")
    assert lines["from step 40 on"].endswith(f"{each[1].predicted_speedup:.2f}x")
    assert "from step 100 on" not in lines, "the run ends before"
    # Memory must do for the most masks, and hours fall as FLOPs do.
    memory = "memory per process, ZeRO 1"
    assert lines[memory] == dict(full.lines)[memory] != dict(each[1].lines)[memory]
    hours = float(lines["time at 1,000,000 tokens/s with 154 masked"].split()[0])
    all_hours = float(dict(full.lines)["time at 1,000,000 tokens/s"].split()[0])
    assert hours == pytest.approx(all_hours * falling.training_flops / full.training_flops, abs=0.01)
    with pytest.raises(UserError, match=r"mask_rate 0.4 from step 7 on is 205 of 512 tokens, and the shards hold 154"):
        planned((0, 0.3), (7, 0.4))


def test_plan_with_muon_offers_no_stage_that_is_refused() -> None:
    config = RunConfig(optimizer=OptimizerConfig(type="muon"), training=TrainingConfig(micro_batch_size=27))
    shown = str(plan(config, PlanOptions(processes=16, seq_length=512, vocab_size=30522)))
    assert "Muon's FLOPs per step" in shown
    assert "ZeRO 2" in shown
    assert "ZeRO 3" not in shown
