"""The encoder left of ``:`` as an export of its own."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from data_prep.contract.command_line import UserError
from pipeline.config import ModelConfig
from pipeline.export import NarrowBertForMaskedLM
from pipeline.export.folder import export_config, write_export
from pipeline.export.names import from_transformers
from tests.tiny_exports import HEADS, HIDDEN, INNER, SPECIAL_IDS, VOCABULARY, batch, shaken, write_tokenizer

MODERN: dict[str, Any] = {
    "normalization": "pre", "norm": "rmsnorm", "position": "rope", "activation": "geglu", "bias": False,
}  # fmt: skip


def export(folder: Path, layout: str, options: dict[str, Any], **arguments: Any) -> Path:
    model = ModelConfig(
        layout=layout, hidden_size=HIDDEN, num_attention_heads=HEADS, ffn_hidden_size=INNER,
        max_position_embeddings=16, init_method_std=0.3, **options,
    )  # fmt: skip
    model_config = {**dataclasses.asdict(model), "vocab_size": VOCABULARY}
    config = export_config(model_config, SPECIAL_IDS)
    tokenizer = folder.parent.parent / f"{folder.parent.name}.json"
    write_tokenizer(tokenizer)
    write_export(
        from_transformers(shaken(NarrowBertForMaskedLM, config).state_dict(), config), model_config=model_config,
        tokenizer_path=tokenizer, special_ids=SPECIAL_IDS, facts={}, output=folder, **arguments,
    )  # fmt: skip
    return folder


@pytest.mark.parametrize("options", [{}, MODERN])
def test_its_states_are_those_at_the_narrowing_point(tmp_path: Path, options: Any) -> None:
    whole = AutoModelForMaskedLM.from_pretrained(export(tmp_path / "whole", "3sf:2sf", options)).eval()
    encoder = AutoModel.from_pretrained(export(tmp_path / "encoder", "3sf:2sf", options, encoder_only=True)).eval()
    assert encoder.config.layout == "3sf"
    ids, mask = batch(12, 9)
    with torch.no_grad():
        state = whole.bert(ids, attention_mask=mask, output_hidden_states=True).hidden_states[3]
        if whole.bert.frozen_norm is not None:
            state = whole.bert.frozen_norm(state)
        found = encoder(ids, attention_mask=mask).last_hidden_state
    real = mask.bool()
    torch.testing.assert_close(found[real], state[real], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="cls"):  # never a head at random
        AutoModelForMaskedLM.from_pretrained(tmp_path / "encoder")
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "encoder", num_labels=3)
    assert classifier(ids, attention_mask=mask).logits.shape == (2, 3)
    card = (tmp_path / "encoder/README.md").read_text()
    assert "pipeline_tag: feature-extraction" in card
    assert "fill-mask" not in card


def test_a_plain_encoder_needs_no_code(tmp_path: Path) -> None:
    export(tmp_path / "own", "2sf:2sf", {}, encoder_only=True)
    export(tmp_path / "bert", "2sf:2sf", {}, encoder_only=True, model_type="bert")
    own, bert = (AutoModel.from_pretrained(tmp_path / name).eval() for name in ("own", "bert"))
    assert type(bert).__name__ == "BertModel"
    ids, mask = batch(12, 9)
    with torch.no_grad():
        found, expected = (m(ids, attention_mask=mask).last_hidden_state[mask.bool()] for m in (bert, own))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("layout", "options", "expected"),
    [
        ("3sf", {}, "layout 3sf has no encoder left of ':'"),
        (":2sf", {}, "has no encoder left of ':'"),
        ("2sf 2s:2f", MODERN, "has no attention right of ':', whose norm would end the encoder"),
    ],
)
def test_where_there_is_no_encoder_nothing_is_written(tmp_path: Path, layout: str, options: Any, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        export(tmp_path / "encoder", layout, options, encoder_only=True)
    assert expected in str(caught.value)
    assert not any(tmp_path.iterdir())
