"""Presets of published models have their shapes: parameters, and rows and tokens of a step."""

import itertools
from pathlib import Path

import pytest
import torch
from transformers import ModernBertConfig, ModernBertForMaskedLM

from data_prep.contract.command_line import read_config
from pipeline.config import RunConfig
from pipeline.layout import parse_layout
from pipeline.model.parameters import NUM_TOKEN_TYPES, count_parameters

FOLDER = Path("configs/pretrain")
LARGE = {"hidden_size": 1024, "intermediate_size": 2624, "num_hidden_layers": 28, "num_attention_heads": 16}


def preset(name: str) -> RunConfig:
    return read_config(RunConfig, ["--config", str(FOLDER / f"{name}.yaml")], "test", "test")


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("modernbert-base", {}),
        ("modernbert-base-context", {}),
        ("modernbert-base-decay", {}),
        ("modernbert-large", LARGE),
        (
            "tabibert",
            {
                "vocab_size": 50_176,
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "cls_token_id": 1,
                "sep_token_id": 2,
            },
        ),
    ],
)
def test_a_modernbert_has_its_sources_parameters_and_attention(name: str, theirs: dict[str, int]) -> None:
    config = ModernBertConfig(**theirs)
    with torch.device("meta"):
        source = ModernBertForMaskedLM(config)
    model = preset(name).model
    segments = NUM_TOKEN_TYPES * config.hidden_size  # a ModernBERT has none
    assert count_parameters(model, config.vocab_size) == sum(map(torch.numel, source.parameters())) + segments
    letters = {"full_attention": "s", "sliding_attention": "w"}
    assert parse_layout(model.layout).full[::2] == "".join(letters[kind] for kind in config.layer_types)
    assert (model.attention_window, model.layernorm_epsilon) == (config.local_attention, config.norm_eps)


def test_a_mosaicbert_has_137_million_parameters() -> None:
    model = preset("mosaicbert-base").model
    gate_biases = 12 * 2 * model.ffn_hidden_size
    assert round((count_parameters(model, 30_522) - gate_biases) / 1e6) == 137


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("mosaicbert-base", 2),
        ("modernbert-base", 6),
        ("modernbert-base-context", 6),
        ("modernbert-base-decay", 6),
        ("modernbert-large", 9),
    ],
)
def test_a_narrowed_twin_differs_in_its_layout_alone(name: str, layers: int) -> None:
    whole, twin = preset(name), preset(f"narrow-{name}")
    full, layout = parse_layout(whole.model.layout).full, parse_layout(twin.model.layout)
    assert layout.full == full[: 2 * layers]
    assert layout.narrow == full[2 * layers :].replace("w", "s")
    twin.model.__dict__["layout"] = whole.model.layout
    assert (twin.model, twin.optimizer, twin.training, twin.data) == (
        whole.model, whole.optimizer, whole.training, whole.data,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "seq_length", "tokens"),
    [
        ("modernbert-base", 1024, 1719e9),
        ("modernbert-base-context", 8192, 250e9),
        ("modernbert-base-decay", 8192, 50e9),
        ("modernbert-large", 1024, 1719e9),
        ("tabibert", 1024, 595e9),
    ],
)
def test_a_preset_trains_on_as_many_tokens_as_its_source(name: str, seq_length: int, tokens: float) -> None:
    training = preset(name).training
    stages = [*(training.batch_warmup or ((0, training.global_batch_size),)), (training.train_steps, 0)]
    rows = sum(rows * (end - begin) for (begin, rows), (end, _) in itertools.pairwise(stages))
    assert rows * seq_length == pytest.approx(tokens, rel=2e-3)
