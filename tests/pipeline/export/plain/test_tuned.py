"""Fine-tuned models of full layers in a plain form."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoTokenizer

from data_prep.contract.command_line import UserError
from pipeline.export import (
    AUTO_CLASSES,
    NarrowBertForMaskedLM,
    NarrowBertForQuestionAnswering,
    NarrowBertForSequenceClassification,
    NarrowBertForTokenClassification,
    NarrowBertModel,
)
from pipeline.export.folder import pooling_of, write_pooling
from pipeline.export.plain.tuned import export_tuned, is_tuned
from tests.processes import user_error
from tests.tiny_exports import assert_close, batch, write_folder

LABELS = {"id2label": {0: "sad", 1: "glad", 2: "neither"}, "label2id": {"sad": 0, "glad": 1, "neither": 2}}


@pytest.mark.parametrize(
    ("model_class", "options", "outputs"),
    [
        (NarrowBertForSequenceClassification, LABELS, ["logits"]),
        (NarrowBertForSequenceClassification, {"num_labels": 1, "problem_type": "regression"}, ["logits"]),
        (NarrowBertForTokenClassification, LABELS, ["logits"]),
        (NarrowBertForQuestionAnswering, {}, ["start_logits", "end_logits"]),
        (NarrowBertModel, {}, ["last_hidden_state"]),
    ],
)
def test_it_gives_what_it_gave(tmp_path: Path, model_class: Any, options: dict[str, Any], outputs: list[str]) -> None:
    folder = write_folder(tmp_path / "tuned", model_class, "2sf", **options)
    assert is_tuned(folder)
    export_tuned(folder, tmp_path / "plain", "bert", None)
    auto = next(auto for auto, our in AUTO_CLASSES.items() if our is model_class)
    theirs = getattr(transformers, auto).from_pretrained(tmp_path / "plain", trust_remote_code=False).eval()
    ours = model_class.from_pretrained(folder).eval()
    assert type(theirs).__name__ == model_class.__name__.removeprefix("Narrow")
    ids, mask = batch(12, 5)
    for inputs in ({"input_ids": ids, "attention_mask": mask}, {"input_ids": ids}):
        with torch.no_grad():
            found, expected = theirs(**inputs), ours(**inputs)
        for name in outputs:
            is_row = expected[name].shape[:2] != ids.shape
            real = ... if is_row or "attention_mask" not in inputs else mask.bool()
            assert_close(found[name][real], expected[name][real])
    for name in ("id2label", "label2id", "problem_type"):
        assert getattr(theirs.config, name) == getattr(ours.config, name)
    assert not list((tmp_path / "plain").glob("*.py"))
    texts = [AutoTokenizer.from_pretrained(where)("the cat sat", "a dog") for where in (tmp_path / "plain", folder)]
    assert texts[0].data == texts[1].data


def test_an_embedder_stays_one(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tuned", NarrowBertModel, "2sf")
    write_pooling(folder, NarrowBertModel.from_pretrained(folder).config, "cls")
    export_tuned(folder, tmp_path / "plain", "bert", None)
    assert pooling_of(tmp_path / "plain") == "cls"
    assert json.loads((tmp_path / "plain/1_Pooling/config.json").read_text())["pooling_mode_cls_token"]
    export_tuned(folder, tmp_path / "mean", "bert", "mean")
    assert pooling_of(tmp_path / "mean") == "mean"


def test_what_has_no_plain_form_is_refused(tmp_path: Path) -> None:
    assert not is_tuned(write_folder(tmp_path / "lm", NarrowBertForMaskedLM, "2sf"))
    narrow = write_folder(tmp_path / "narrow", NarrowBertForTokenClassification, "1sf:1sf")
    with pytest.raises(UserError, match=r"model\.layout is 1sf:1sf, bert needs sf alone"):
        export_tuned(narrow, tmp_path / "x", "bert", None)
    tagger = write_folder(tmp_path / "tagger", NarrowBertForTokenClassification, "2sf")
    with pytest.raises(UserError, match=r"--pooling makes embeddings, and .* holds a NarrowBertForTokenClassification"):
        export_tuned(tagger, tmp_path / "x", "bert", "cls")
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_options_of_masked_language_models_are_refused(tmp_path: Path) -> None:
    folder = str(write_folder(tmp_path / "tagger", NarrowBertForTokenClassification, "2sf"))
    argv = ["convert", folder, "--output", str(tmp_path / "x"), "--model_type", "bert", "--layout", "2sf"]
    assert "--layout is for masked-LM models, and" in user_error("pipeline", *argv)
