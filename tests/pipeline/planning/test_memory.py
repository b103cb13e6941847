import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.contract.command_line import read_config
from pipeline.config import ModelConfig, RunConfig, TrainingConfig
from pipeline.model.arithmetic import RowShape
from pipeline.model.masked_lm import NarrowBertForPretraining
from pipeline.model.parameters import padded_vocab_size
from pipeline.planning.memory import LiveBytes, activation_bytes, model_state_bytes, predict_memory

SHAPE = RowShape(seq_length=32, masked_per_row=5, vocab_size=300)


def configuration(**training: object) -> RunConfig:
    model = ModelConfig(
        layout="sf:2sf", hidden_size=32, num_attention_heads=4, ffn_hidden_size=64, max_position_embeddings=32
    )
    return RunConfig(model=model, training=TrainingConfig(micro_batch_size=4, **training))  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_live_bytes_are_those_of_tensors_that_exist(device: str) -> None:
    start = torch.ones(1000, device=device)
    live = LiveBytes()
    live.ignore(start)
    with live:
        doubled = start * 2
        view = doubled[:10]
        more = doubled + 1
        assert (live.now, live.peak) == (8000, 8000)
        del doubled
        assert live.now == 8000, "the view keeps its storage"
        del view
        assert (live.now, live.peak) == (4000, 8000)
        more.add_(1)
        assert live.now == 4000


def test_activations_grow_with_rows_and_shrink_with_narrow_layers() -> None:
    base = configuration()
    whole = activation_bytes(base, SHAPE)
    twice = dataclasses.replace(base, training=dataclasses.replace(base.training, micro_batch_size=8))
    assert activation_bytes(twice, SHAPE) == pytest.approx(2 * whole, rel=0.02)
    bert = dataclasses.replace(base, model=dataclasses.replace(base.model, layout="3sf"))
    assert activation_bytes(bert, SHAPE) > 1.5 * whole
    fp32 = dataclasses.replace(base, training=dataclasses.replace(base.training, precision="fp32"))
    assert activation_bytes(fp32, SHAPE) > 1.3 * whole


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attention_dropout": 0.0},
        {"document_attention": "isolated", "attention_dropout": 0.0},
        {"recompute": True},
        {"hidden_dropout": 0.0, "attention_output_dropout": 0.1},
    ],
)
def test_prediction_is_what_a_pass_makes(options: dict[str, Any]) -> None:
    config = dataclasses.replace(configuration(precision="fp32"))
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, layout="2sf:sf", **options))
    model = NarrowBertForPretraining(config.model, SHAPE.vocab_size, padded_vocab_size(SHAPE.vocab_size, 1))
    ids, positions = torch.zeros(4, 32, dtype=torch.int64), torch.zeros(4, 5, dtype=torch.int64)
    live = LiveBytes()
    for parameter in model.parameters():
        live.ignore(parameter)
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    isolated = config.model.document_attention == "isolated"
    documents = torch.arange(32).expand(4, 32) // 8 if isolated else None
    with live:
        output = model(ids, positions, None, positions, torch.ones_like(positions, dtype=torch.bool), documents)
        output.loss_sum.backward()
    assert activation_bytes(config, SHAPE) == pytest.approx(live.peak, rel=0.02)


def test_on_a_gpu_a_token_keeps_as_much_in_rows_of_any_length_and_on_a_cpu_it_keeps_its_scores() -> None:
    model = dataclasses.replace(
        configuration().model, layout="sf wf:sf", normalization="pre", position="rope", attention_window=8,
        max_position_embeddings=2048, attention_dropout=0.0, document_attention="isolated",
    )  # fmt: skip
    kept = {}
    for length in (128, 512, 2048):
        training = dataclasses.replace(configuration().training, micro_batch_size=4096 // length)
        config = dataclasses.replace(configuration(), model=model, training=training)
        shape = RowShape(seq_length=length, masked_per_row=length // 8, vocab_size=SHAPE.vocab_size)
        kept[length] = [activation_bytes(config, shape, on_gpu=on_gpu) for on_gpu in (True, False)]
    assert kept[2048][0] == pytest.approx(kept[128][0], rel=0.02)
    scores = 8 * model.num_attention_heads * 512 * 512 * 2  # of the one full attention, and their softmax
    assert kept[512][1] > kept[512][0] + 2 * scores
    assert kept[128][1] > kept[128][0]
    # There the fused kernel computes the full attention. Of the narrow one, 256 queries, two products remain.
    assert kept[2048][1] < kept[2048][0] + 2 * model.num_attention_heads * 2048 * 2048 * 2


def test_states_are_split_over_the_right_processes() -> None:
    one = predict_memory(configuration(zero_stage=2), SHAPE, 1)
    data = predict_memory(configuration(zero_stage=2), SHAPE, 4)
    assert (data.weights, data.gradients * 4, data.optimizer * 4) == (one.weights, one.gradients, one.optimizer)
    both = predict_memory(configuration(zero_stage=2, tensor_model_parallel_size=2), SHAPE, 4)
    assert math.isclose(both.weights * 2, one.weights, rel_tol=1e-4)
    assert math.isclose(both.optimizer * 4, one.optimizer, rel_tol=1e-4)
    assert both.activations < one.activations


@pytest.mark.parametrize("preset", sorted(Path("configs/pretrain").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_can_be_planned(preset: Path) -> None:
    config = read_config(RunConfig, ["--config", str(preset)], "test", "test")
    shape = RowShape(seq_length=config.model.max_position_embeddings, masked_per_row=19, vocab_size=8192)
    assert activation_bytes(config, shape) > 0


def test_model_states_follow_zero() -> None:
    def states(stage: int, precision: str, *, moments: int = 2000, adds_in_fp32: bool = False) -> int:
        return sum(model_state_bytes(1000, precision, stage, 4, moments=moments, adds_in_fp32=adds_in_fp32))

    assert [states(stage, "bf16", adds_in_fp32=True) for stage in range(1, 4)] == [9_000, 6_000, 4_500]
    assert [states(stage, "bf16") for stage in range(1, 4)] == [7_000, 5_500, 4_000]
    assert [states(stage, "fp32") for stage in range(4)] == [16_000, 11_000, 8_000, 5_000]
    assert states(1, "fp16") == 7_000
    # Muon has one moment of the 600 parameters that it updates.
    assert [states(stage, "bf16", moments=1400) for stage in range(1, 3)] == [6_400, 4_900]
    assert states(0, "fp32", moments=1400) == 13_600
