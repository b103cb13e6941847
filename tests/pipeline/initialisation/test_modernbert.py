"""A ModernBERT of transformers: the same logits in our terms, and narrowed."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ModernBertConfig, ModernBertForMaskedLM

from data_prep.contract.command_line import UserError
from pipeline.config import InitConfig, ModelConfig, RunConfig
from pipeline.data.mixture import Mixture
from pipeline.export import NarrowBertForMaskedLM
from pipeline.initialisation.load import load_init
from pipeline.initialisation.pretrained import export_pretrained
from pipeline.initialisation.source import open_source
from pipeline.model.masked_lm import NarrowBertForPretraining
from tests.tiny_exports import SPECIAL_IDS, VOCABULARY, assert_close, write_tokenizer


@pytest.fixture
def tokenizer_path(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    write_tokenizer(path)
    return path


def modernbert(folder: Path, **options: Any) -> ModernBertForMaskedLM:
    """Seven layers, s w w s w w s, with random weights."""
    config = ModernBertConfig(**{
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 7,
        "num_attention_heads": 4, "max_position_embeddings": 256, "initializer_range": 0.15, "pad_token_id": 0,
        "cls_token_id": SPECIAL_IDS["cls"], "sep_token_id": SPECIAL_IDS["sep"], "bos_token_id": None,
        "eos_token_id": None, "local_attention": 8,
    } | options)  # fmt: skip
    torch.manual_seed(0)
    model = ModernBertForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("window", [8, 128])
def test_logits_are_those_of_transformers(tmp_path: Path, tokenizer_path: Path, window: int) -> None:
    bases = {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in [
        ("full_attention", 400.0), ("sliding_attention", 50.0),
    ]}  # fmt: skip
    theirs = modernbert(tmp_path / "modern", local_attention=window, rope_parameters=bases)
    arguments: dict[str, Any] = {"tokenizer_path": tokenizer_path, "allow": []}
    export_pretrained(tmp_path / "modern", tmp_path / "ours", layout=None, **arguments)
    ours = NarrowBertForMaskedLM.from_pretrained(tmp_path / "ours").eval()
    assert ours.config.layout == "2sfwfwf sf"
    for length in (40, 200):
        ids = torch.randint(5, VOCABULARY, (3, length), generator=torch.Generator().manual_seed(length))
        mask = (torch.arange(length) < torch.tensor([[length], [length // 3], [length - 1]])).long()
        everything = torch.arange(length).expand(3, -1)
        with torch.no_grad():
            expected = theirs(ids, attention_mask=mask).logits
            found = ours(ids, attention_mask=mask, narrow_positions=everything).logits
            assert_close(found[mask.bool()], expected[mask.bool()], 1e-5)
            assert_close(ours(ids, narrow_positions=everything).logits, theirs(ids).logits, 1e-5)


def test_training_starts_from_it(tmp_path: Path, shards: Mixture) -> None:
    theirs = modernbert(tmp_path / "modern", vocab_size=shards.vocab_size)
    model = ModelConfig(
        layout="2sfwfwf sf", hidden_size=32, num_attention_heads=4, ffn_hidden_size=48, max_position_embeddings=64,
        normalization="pre", skip_first_norm=True, position="rope", rotary_base=160_000.0, activation="geglu",
        attention_window=8, bias=False, layernorm_epsilon=1e-5,
    )  # fmt: skip
    config = RunConfig(model=model, init=InitConfig(from_huggingface=str(tmp_path / "modern")))
    ours = NarrowBertForPretraining(model, shards.vocab_size).eval()
    list(load_init(ours, config, shards))
    ids = torch.randint(5, shards.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert_close(ours.logits(ids, torch.arange(40).expand(2, -1), None), theirs(ids).logits, 1e-5)
    other = dataclasses.replace(config, model=dataclasses.replace(model, attention_window=16, skip_first_norm=False))
    with pytest.raises(UserError, match=r"attention_window 8 there, model\.attention_window 16") as caught:
        load_init(ours, other, shards)
    assert "skip_first_norm True there" in str(caught.value)


def test_it_is_narrowed_with_its_own_weights(tmp_path: Path, tokenizer_path: Path) -> None:
    theirs = modernbert(tmp_path / "modern")
    arguments: dict[str, Any] = {"tokenizer_path": tokenizer_path, "allow": []}
    printed = export_pretrained(tmp_path / "modern", tmp_path / "ours", layout="sfwf:5sf", **arguments)
    assert "layout 2sfwfwf sf there, sf wf:5sf here" in printed[0]
    ours = NarrowBertForMaskedLM.from_pretrained(tmp_path / "ours").state_dict()
    layer = "bert.encoder_narrow.layer.1.attention.self.value.weight"
    assert torch.equal(ours[layer], theirs.state_dict()["model.layers.3.attn.Wqkv.weight"][64:])


def test_one_narrow_layer_at_the_end_changes_nothing(tmp_path: Path, tokenizer_path: Path) -> None:
    # Its keys and values are those of the running state, through its own norm.
    theirs = modernbert(tmp_path / "modern")
    arguments: dict[str, Any] = {"tokenizer_path": tokenizer_path, "allow": []}
    export_pretrained(tmp_path / "modern", tmp_path / "ours", layout="2sfwfwf:sf", **arguments)
    ours = NarrowBertForMaskedLM.from_pretrained(tmp_path / "ours").eval()
    ids = torch.randint(5, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(1))
    positions = torch.tensor([[3, 39, 7], [0, 20, 21]])
    with torch.no_grad():
        expected = theirs(ids).logits.gather(1, positions.unsqueeze(-1).expand(-1, -1, VOCABULARY))
        assert_close(ours(ids, narrow_positions=positions).logits, expected, 1e-5)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"hidden_activation": "silu"}, "hidden_activation and classifier_activation other than gelu"),
        ({"layer_types": ["full_attention"]}, "layer_types does not say of each of num_hidden_layers"),
        ({"mlp_bias": True}, "mlp_bias alone; all or none is known here"),
    ],
)
def test_what_no_narrowbert_is_is_named(tmp_path: Path, changed: dict[str, Any], expected: str) -> None:
    modernbert(tmp_path / "modern")
    path = tmp_path / "modern/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(UserError, match=expected):
        open_source(tmp_path / "modern")
