"""The bytes that a step sends, against their formulas; tests/distributed holds them against real collectives."""

import pytest

from pipeline.config import ModelConfig, RunConfig, TrainingConfig
from pipeline.model.arithmetic import RowShape
from pipeline.model.parameters import count_parameters
from pipeline.planning.communication import Collective, bytes_out_of_node, step_communication, step_seconds


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
