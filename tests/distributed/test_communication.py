"""The bytes that ``narrowbert plan`` predicts, held against what torch.distributed is really given."""

import json
from pathlib import Path

import pytest

from data_prep.contract.command_line import UserError
from pipeline.config import ModelConfig, RunConfig, TrainingConfig
from pipeline.model.arithmetic import RowShape
from pipeline.model.parameters import count_parameters
from pipeline.planning.communication import Collective, bytes_out_of_node, step_communication, step_seconds
from pipeline.planning.plan import PlanOptions, plan
from tests.processes import run_ranks


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
def test_predicted_bytes_are_those_of_a_real_step(
    tmp_path: Path, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    run_ranks(world_size, lambda rank: ["-m", "tests.distributed.volume", str(rank), str(world_size), str(tmp_path)])
    results = json.loads((tmp_path / f"volume-{world_size}.json").read_text())
    assert results
    for name, (measured, predicted) in results.items():
        assert predicted.keys() == measured.keys(), name
        for operation, size in predicted.items():
            # Which weights ZeRO 3 still has for the backward pass is an estimate; the rest is exact but for padding.
            is_estimate = "few live" in name and operation.startswith("all_gather")
            assert size == pytest.approx(measured[operation], rel=0.1 if is_estimate else 0.002), (name, operation)


def test_bytes_follow_the_formulas() -> None:
    shape = RowShape(seq_length=512, masked_per_row=77, vocab_size=30_464)  # a multiple of 128: no padding
    model = ModelConfig()
    size = 2 * count_parameters(model, shape.vocab_size)

    def payloads(**training: object) -> dict[str, int]:
        values = {"global_batch_size": 512, "micro_batch_size": 8} | training
        config = RunConfig(model=model, training=TrainingConfig(**values))  # type: ignore[arg-type]
        return {f"{c.what} {c.operation}": c.payload for c in step_communication(config, shape, 8)}

    assert payloads(zero_stage=1) == {"gradients all_reduce": size, "weights all_gather": size}
    assert payloads(zero_stage=2) == {"gradients all_reduce": 8 * size, "weights all_gather": size}
    three = payloads(zero_stage=3)
    assert three["gradients reduce_scatter"] == 8 * size
    assert 8 * size < three["weights all_gather"] < 16 * size
    split = payloads(zero_stage=1, tensor_model_parallel_size=8)
    row = 8 * 768 * 2
    expected = 64 * (row * (512 * (1 + 4 + 4 + 1) + 77 * (20 + 20 + 2)) + 3 * 8 * 77 * 4)
    assert split == {"activations all_reduce": expected, "the head's input all_gather": 64 * row * 77}


def test_rings_cross_between_nodes_once() -> None:
    ring = Collective(what="gradients", operation="all_reduce", group="data", group_size=16, payload=1600)
    assert ring.sent == pytest.approx(2 * 1600 * 15 / 16)
    assert bytes_out_of_node([ring], 8, 2) == pytest.approx(ring.sent)
    assert bytes_out_of_node([ring], 16, 1) == 0
    tensor = Collective(what="activations", operation="all_reduce", group="tensor", group_size=4, payload=400)
    # Four data rings, one for each tensor rank of a node; tensor groups stay inside.
    assert bytes_out_of_node([ring, tensor], 8, 8) == pytest.approx(4 * ring.sent)
    assert bytes_out_of_node([ring, tensor], 2, 32) == pytest.approx(2 * ring.sent + tensor.sent)
    assert step_seconds(2.0, 5e9, 10e9) == (2.5, 0.8)


def test_plan_prints_bytes_and_efficiency() -> None:
    config = RunConfig(training=TrainingConfig(micro_batch_size=27))

    def printed(**options: object) -> str:
        return plan(config, PlanOptions(processes=16, seq_length=512, vocab_size=30522, **options))  # type: ignore[arg-type]

    shown = printed(nodes=2)
    assert "gradients, all_reduce" in shown
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
