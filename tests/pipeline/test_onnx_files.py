"""ONNX files of a model: any batch and length, the same numbers as torch."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from data_prep.command_line import UserError
from pipeline.export import (
    NarrowBertForMaskedLM,
    NarrowBertForQuestionAnswering,
    NarrowBertForSequenceClassification,
)
from pipeline.export.onnx_files import write_onnx
from tests.processes import user_error
from tests.tiny_exports import batch, write_folder


def run(path: Path, **inputs: torch.Tensor) -> np.ndarray:
    (found,) = onnxruntime.InferenceSession(path).run(None, {name: x.numpy() for name, x in inputs.items()})
    return found


@pytest.mark.slow
@pytest.mark.parametrize("model_class", [NarrowBertForSequenceClassification, NarrowBertForMaskedLM])
def test_files_give_torchs_numbers(model_class: Any, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny", model_class, "2sf:2sf")
    written = write_onnx(folder)
    assert all(difference < 1e-4 for _, difference in written)
    ids, mask = batch(12, 5, 7, 9)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": (ids % 2) * mask}
    if model_class is NarrowBertForSequenceClassification:
        assert [path.name for path, _ in written] == ["classifier.onnx"]
        with torch.no_grad():
            expected = AutoModelForSequenceClassification.from_pretrained(folder)(**inputs).logits
        assert np.allclose(run(written[0][0], **inputs), expected, atol=1e-5)
        return
    assert [path.name for path, _ in written] == ["fill-mask.onnx", "encoder.onnx"]
    model = AutoModelForMaskedLM.from_pretrained(folder)
    positions = torch.tensor([[1, 4], [0, 2], [3, 3], [8, 5]])
    with torch.no_grad():
        expected = model(**inputs, narrow_positions=positions).logits
        cls = model.bert(**inputs).last_hidden_state[:, 0]
    assert np.allclose(run(written[0][0], **inputs, narrow_positions=positions), expected, atol=1e-5)
    assert np.allclose(run(written[1][0], **inputs), cls, atol=1e-5)


def test_other_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no model folder"):
        write_onnx(tmp_path)
    folder = write_folder(tmp_path / "tiny", NarrowBertForQuestionAnswering)
    with pytest.raises(UserError, match="neither a masked-LM export nor a sentence classifier"):
        write_onnx(folder)


@pytest.mark.slow
def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    assert "is no model folder" in user_error("pipeline", "export", "--onnx", str(tmp_path))
    assert "stands alone" in user_error("pipeline", "export", "--onnx", str(tmp_path), "--output", "x")
    assert "give --output" in user_error("pipeline", "export", "run")
