"""ONNX files of a model: any batch and length, the same numbers as torch."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from data_prep.contract.command_line import UserError
from pipeline.export import (
    NarrowBertForMaskedLM,
    NarrowBertForQuestionAnswering,
    NarrowBertForSequenceClassification,
    int8_files,
    onnx_files,
)
from pipeline.export.folder import write_pooling
from pipeline.export.int8_files import write_int8
from pipeline.export.onnx_files import write_onnx
from pipeline.initialisation.pretrained import export_pretrained
from tests.full_disk import full_disk
from tests.marks import long
from tests.processes import user_error
from tests.tiny_exports import MODERN, batch, write_folder

INPUTS = ["input_ids", "attention_mask", "token_type_ids"]


def run(path: Path, **inputs: torch.Tensor) -> np.ndarray:
    """The first output."""
    return outputs_of(path, **inputs)[0]


def outputs_of(path: Path, **inputs: torch.Tensor) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(path).run(None, {name: x.numpy() for name, x in inputs.items()})


def names_of(path: Path) -> tuple[list[str], list[str]]:
    """Inputs and outputs, all of them tensors of the types that servers give and take."""
    session = onnxruntime.InferenceSession(path)
    assert {entry.type for entry in session.get_inputs()} == {"tensor(int64)"}
    assert {entry.type for entry in session.get_outputs()} == {"tensor(float)"}
    return [entry.name for entry in session.get_inputs()], [entry.name for entry in session.get_outputs()]


@pytest.mark.slow
@pytest.mark.parametrize("model_class", [NarrowBertForSequenceClassification, NarrowBertForMaskedLM])
def test_files_give_torchs_numbers(model_class: Any, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny", model_class, "2sf:2sf")
    written = write_onnx(folder)
    assert all(difference < 1e-4 for _, difference in written)
    ids, mask = batch(12, 5, 7, 9)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": (ids % 2) * mask}
    if model_class is NarrowBertForSequenceClassification:
        assert [path.name for path, _ in written] == ["model.onnx"]
        assert names_of(written[0][0]) == (INPUTS, ["logits"])
        with torch.no_grad():
            expected = AutoModelForSequenceClassification.from_pretrained(folder)(**inputs).logits
        assert np.allclose(run(written[0][0], **inputs), expected, atol=1e-5)
        return
    assert [path.name for path, _ in written] == ["fill-mask.onnx", "model.onnx"]
    assert names_of(written[0][0]) == ([*INPUTS, "narrow_positions"], ["logits"])
    assert names_of(written[1][0]) == (INPUTS, ["sentence_embedding"])
    model = AutoModelForMaskedLM.from_pretrained(folder)
    positions = torch.tensor([[1, 4], [0, 2], [3, 3], [8, 5]])
    with torch.no_grad():
        expected = model(**inputs, narrow_positions=positions).logits
        cls = model.bert(**inputs).last_hidden_state[:, 0]
    assert np.allclose(run(written[0][0], **inputs, narrow_positions=positions), expected, atol=1e-5)
    assert np.allclose(run(written[1][0], **inputs), cls, atol=1e-5)


@pytest.mark.slow
def test_the_encoder_of_an_export_that_takes_means_does_so_too(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny", NarrowBertForMaskedLM, "2sf:2sf")
    model = AutoModelForMaskedLM.from_pretrained(folder)
    write_pooling(folder, model.config, "mean")
    (path,) = [path for path, _ in write_onnx(folder) if path.stem == "model"]
    assert names_of(path) == (INPUTS, ["sentence_embedding", "last_hidden_state"])
    ids, mask = batch(12, 5, 7, 9)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * mask}
    with torch.no_grad():
        hidden = model.bert(**inputs).last_hidden_state
    mean = torch.stack([row[:length].mean(0) for row, length in zip(hidden, mask.sum(1), strict=True)])
    assert np.allclose(run(path, **inputs), mean, atol=1e-5)
    assert not np.allclose(run(path, **inputs), hidden[:, 0], atol=1e-2)
    assert np.allclose(outputs_of(path, **inputs)[1][mask.bool()], hidden[mask.bool()], atol=1e-5)


PLAIN: dict[str, tuple[str, dict[str, Any]]] = {"bert": ("3sf", {}), "modernbert": ("2sfwf", MODERN)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "pooling"), [("bert", "mean"), ("modernbert", "cls"), long("bert", None), long("modernbert", "mean")]
)
def test_a_plain_form_gives_states_and_embeddings(model_type: str, pooling: str | None, tmp_path: Path) -> None:
    layout, options = PLAIN[model_type]
    ours = write_folder(tmp_path / "ours", NarrowBertForMaskedLM, layout, **options)
    folder = tmp_path / "plain"
    arguments: dict[str, Any] = {"layout": None, "tokenizer_path": None, "allow": [], "pooling": pooling}
    export_pretrained(ours, folder, model_type=model_type, **arguments)
    ((path, _),) = write_onnx(folder)
    assert path == folder / "onnx/model.onnx"
    inputs = INPUTS[:2] if model_type == "modernbert" else INPUTS
    assert names_of(path) == (inputs, ["sentence_embedding", "last_hidden_state"][pooling is None :])
    ids, mask = batch(12, 5, 7, 9)
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * mask}
    found = outputs_of(path, **{name: given[name] for name in inputs})
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder)(input_ids=ids, attention_mask=mask).last_hidden_state
    assert np.allclose(found[-1][mask.bool()], hidden[mask.bool()], atol=1e-5)
    rows = [row[:length] for row, length in zip(hidden, mask.sum(1), strict=True)]
    if pooling:
        wanted = torch.stack([row.mean(0) if pooling == "mean" else row[0] for row in rows])
        assert np.allclose(found[0], wanted, atol=1e-5)
    (compared,) = write_int8(folder, [path], _texts(tmp_path))
    assert compared.path == folder / "onnx/model.int8.onnx"
    assert compared.quality.startswith("embeddings of 1 texts have a cosine of ")


@pytest.mark.long
@pytest.mark.parametrize("model_class", [NarrowBertForSequenceClassification, NarrowBertForMaskedLM])
def test_int8_files_are_measured_beside_their_originals(model_class: Any, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny", model_class, "2sf:2sf", initializer_range=0.1)
    texts = tmp_path / "texts.txt"
    texts.write_text(
        "".join(f"the {a} {b} on a {a} .\n\n" for a in ("cat", "dogs", "mat") for b in ("sat", "ran", "cafes"))
    )
    originals = [path for path, _ in write_onnx(folder)]
    for compared in write_int8(folder, originals, texts):
        original = compared.path.with_name(compared.path.name.replace(".int8", ""))
        assert original in originals
        assert compared.megabytes == (original.stat().st_size / 1e6, compared.path.stat().st_size / 1e6)
        assert compared.megabytes[1] < compared.megabytes[0]
        assert compared.speed > 0
        ids, mask = batch(12, 5, 7, 9)
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * mask}
        if original.stem == "fill-mask":
            inputs["narrow_positions"] = torch.tensor([[1, 4], [0, 2], [3, 3], [8, 5]])
            assert re.fullmatch(r"finds [0-9.]+% of 10 masked tokens \(fp32 [0-9.]+%\)", compared.quality)
        exact, rounded = run(original, **inputs), run(compared.path, **inputs)
        cosine = (exact * rounded).sum() / np.sqrt((exact**2).sum() * (rounded**2).sum())
        assert 0.98 < cosine < 1 - 1e-7, "nearly the same numbers, and not the same"
        if original.stem == "model" and model_class is NarrowBertForMaskedLM:
            least = float(compared.quality.split("least ")[1].rstrip(")"))
            assert 0.95 < least <= 1


def test_int8_is_judged_by_what_it_finds() -> None:
    wanted = [np.array([[3, 1], [2, -1]]), np.array([[0]])]
    one_hot = np.eye(4)
    fp32 = [one_hot[[[3, 1], [2, 0]]], one_hot[[[0]]]]
    int8 = [one_hot[[[3, 0], [2, 0]]], one_hot[[[1]]]]
    pairs = list(zip(fp32, int8, strict=True))
    assert int8_files._judge_fill_mask(pairs, wanted) == "finds 50.0% of 4 masked tokens (fp32 100.0%)"
    labels = [
        (np.array([[1.0, 0], [0, 1]]), np.array([[1.0, 0], [1, 0]])),
        (np.array([[2.0, 3]]), np.array([[2.0, 3]])),
    ]
    assert int8_files._judge_classifier(labels) == "the same label as fp32 for 66.7% of 3 texts"
    vectors = [(np.array([[1.0, 0], [0, 2]]), np.array([[2.0, 0], [1, 1]]))]
    expected = "embeddings of 2 texts have a cosine of 0.8536 to fp32's (least 0.7071)"
    assert int8_files._judge_encoder(vectors) == expected


@pytest.mark.parametrize(("content", "problem"), [(b"\n \n", "has no text"), (b"a\xff", "cannot be read")])
def test_int8_needs_texts(content: bytes, problem: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny", NarrowBertForMaskedLM)
    (tmp_path / "texts").write_bytes(content)
    with pytest.raises(UserError, match=problem):
        write_int8(folder, [], tmp_path / "texts")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny", NarrowBertForSequenceClassification)
    (folder / "onnx").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*tiny/onnx: File exists"):
        write_onnx(folder)
    assert not list(folder.glob(".onnx*"))


@pytest.mark.slow
def test_a_failure_leaves_the_files_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "tiny", NarrowBertForSequenceClassification)
    ((path, _),) = write_onnx(folder)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(onnx_files, "TOLERANCE", -1.0)
        with pytest.raises(UserError, match=r"model\.onnx differs from torch by .*: not written"):
            write_onnx(folder)
    with full_disk(10_000), pytest.raises(UserError, match=r"cannot write .*onnx: File too large"):
        write_onnx(folder)
    with full_disk(10_000), pytest.raises(UserError, match=r"cannot write .*int8\.onnx: File too large"):
        int8_files.write_int8(folder, [path], _texts(tmp_path))
    assert {file.name: file.read_bytes() for file in (folder / "onnx").iterdir()} == {path.name: before}
    assert not list(folder.glob(".onnx*"))


def _texts(folder: Path) -> Path:
    (folder / "texts.txt").write_text("the cat sat\n")
    return folder / "texts.txt"


def test_other_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no model folder"):
        write_onnx(tmp_path)
    folder = write_folder(tmp_path / "tiny", NarrowBertForQuestionAnswering)
    with pytest.raises(UserError, match="neither a masked-LM export nor a sentence classifier"):
        write_onnx(folder)


@pytest.mark.slow
def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    assert "is no model folder" in user_error("pipeline", "onnx", str(tmp_path))
    assert "there is no such file" in user_error("pipeline", "onnx", str(tmp_path), "--int8", "gone.txt")
