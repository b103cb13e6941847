"""Predicted activations of a tensor-parallel rank against those that one really makes."""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pipeline.config import ModelConfig, RunConfig, TrainingConfig
from pipeline.model.arithmetic import RowShape
from pipeline.model.masked_lm import NarrowBertForPretraining
from pipeline.model.parameters import padded_vocab_size
from pipeline.parallel.groups import initialise_tensor_parallel
from pipeline.planning.memory import LiveBytes, activation_bytes
from tests.processes import run_ranks

SHAPE = RowShape(seq_length=64, masked_per_row=10, vocab_size=512)
ROWS = 8


def configuration(layout: str, recompute: bool) -> RunConfig:
    model = ModelConfig(
        layout=layout, hidden_size=64, num_attention_heads=4, ffn_hidden_size=256, max_position_embeddings=64,
        hidden_dropout=0.0, attention_dropout=0.0, recompute=recompute,
    )  # fmt: skip
    training = TrainingConfig(micro_batch_size=ROWS, precision="fp32", tensor_model_parallel_size=2)
    return RunConfig(model=model, training=training)


def live_bytes(config: RunConfig) -> int:
    """Peak of a forward and backward pass of this rank."""
    model = NarrowBertForPretraining(config.model, SHAPE.vocab_size, padded_vocab_size(SHAPE.vocab_size, 2))
    ids = torch.zeros(ROWS, SHAPE.seq_length, dtype=torch.int64)
    positions = torch.zeros(ROWS, SHAPE.masked_per_row, dtype=torch.int64)
    live = LiveBytes()
    for parameter in model.parameters():
        live.ignore(parameter)
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with live:
        model(ids, positions, None, positions, torch.ones_like(positions, dtype=torch.bool)).loss_sum.backward()
    return live.peak


def compare() -> None:
    configurations = [configuration(layout, recompute) for layout in ("6sf", "2sf:2sf") for recompute in (False, True)]
    predicted = [activation_bytes(config, SHAPE) for config in configurations]
    initialise_tensor_parallel(2)
    for config, expected in zip(configurations, predicted, strict=True):
        made = live_bytes(config)
        assert expected == pytest.approx(made, rel=0.1), (config.model, expected / made)


@pytest.mark.long
def test_predicted_activations_are_those_of_a_split_model(tmp_path: Path) -> None:
    run_ranks(2, lambda rank: ["-m", "tests.distributed.test_split_memory", str(rank), str(tmp_path)])


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}/rendezvous", rank=int(sys.argv[1]), world_size=2)
    compare()
    dist.barrier()
    dist.destroy_process_group()
