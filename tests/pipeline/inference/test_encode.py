"""``narrowbert encode``: the same numbers as the model gives text by text, in the order of the lines."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

import narrowbert
from data_prep.contract.command_line import UserError
from pipeline.export import (
    NarrowBertForMaskedLM,
    NarrowBertForQuestionAnswering,
    NarrowBertForSequenceClassification,
    NarrowBertForTokenClassification,
)
from pipeline.export.folder import write_pooling
from pipeline.export.plain.tuned import export_tuned
from pipeline.inference.encode import EncodeOptions, batches_by_length, encode, first_subwords
from pipeline.initialisation.pretrained import export_pretrained
from tests.processes import user_error
from tests.tiny_exports import MODERN, write_folder

LINES = ["the cat sat on the mat.", "a dog", "", "the cats ran on a road. the dog sat", "mat", "the the the the " * 9]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    names = {0: "no", 1: "yes", 2: "maybe"}
    return {
        "encoder": write_folder(folder / "encoder", NarrowBertForMaskedLM),
        "classifier": write_folder(folder / "classifier", NarrowBertForSequenceClassification, id2label=names),
        "labels": write_folder(
            folder / "labels", NarrowBertForSequenceClassification, id2label=names,
            problem_type="multi_label_classification",
        ),
        "regression": write_folder(folder / "regression", NarrowBertForSequenceClassification, num_labels=1),
        "tagger": write_folder(
            folder / "tagger", NarrowBertForTokenClassification, id2label={0: "O", 1: "B-x", 2: "I-x"}
        ),
        "answers": write_folder(folder / "answers", NarrowBertForQuestionAnswering),
    }  # fmt: skip


def answers(folder: Path, lines: list[str], **options: Any) -> tuple[list[dict[str, Any]], int]:
    output = io.StringIO()
    options = {"batch_tokens": 40, "window": 4, **options}
    cut = encode(EncodeOptions(model=folder, **options), [f"{line}\n".encode() for line in lines], output)
    return [json.loads(line) for line in output.getvalue().splitlines()], cut


def alone(folder: Path, model_class: Any, *texts: str, **options: Any) -> tuple[Any, Any]:
    """The model's outputs for one text, and its encoding."""
    inputs = AutoTokenizer.from_pretrained(folder)(*texts, return_tensors="pt", truncation=True, max_length=16)
    with torch.no_grad():
        return model_class.from_pretrained(folder)(**inputs, **options), inputs


@pytest.mark.parametrize("pooling", ["cls", "mean", None])
def test_embeddings_of_lines_in_order(folders: dict[str, Path], pooling: str | None) -> None:
    found, cut = answers(folders["encoder"], LINES, pooling=pooling)
    assert cut == 1
    model = NarrowBertForMaskedLM.from_pretrained(folders["encoder"]).bert
    tokenizer = AutoTokenizer.from_pretrained(folders["encoder"])
    for line, answer in zip(LINES, found, strict=True):
        inputs = tokenizer(line, return_tensors="pt", truncation=True, max_length=16)
        with torch.no_grad():
            hidden = model(**inputs).last_hidden_state[0]
        expected = hidden[0] if pooling == "cls" else hidden.mean(0)
        assert answer["embedding"] == pytest.approx(expected.tolist(), abs=1e-5)


def test_predictions_of_each_kind(folders: dict[str, Path]) -> None:
    classified, _ = answers(folders["classifier"], LINES)
    several, _ = answers(folders["labels"], LINES)
    numbers, _ = answers(folders["regression"], LINES)
    for index, line in enumerate(LINES):
        logits = alone(folders["classifier"], NarrowBertForSequenceClassification, line)[0].logits[0]
        assert list(classified[index]["scores"].values()) == pytest.approx(logits.softmax(-1).tolist(), abs=1e-5)
        assert classified[index]["label"] == ["no", "yes", "maybe"][int(logits.argmax())]
        logits = alone(folders["labels"], NarrowBertForSequenceClassification, line)[0].logits[0]
        expected = [name for name, x in zip(("no", "yes", "maybe"), logits, strict=True) if x > 0]
        assert several[index]["labels"] == expected
        logits = alone(folders["regression"], NarrowBertForSequenceClassification, line)[0].logits[0]
        assert numbers[index]["score"] == pytest.approx(logits.item(), abs=1e-5)
    assert len({answer["label"] for answer in classified}) > 1


def test_pairs_are_two_texts(folders: dict[str, Path]) -> None:
    found, _ = answers(folders["classifier"], ["the cat\ta dog sat", "a mat\tthe road"], pairs=True)
    logits = alone(folders["classifier"], NarrowBertForSequenceClassification, "the cat", "a dog sat")[0].logits[0]
    assert list(found[0]["scores"].values()) == pytest.approx(logits.softmax(-1).tolist(), abs=1e-5)
    with pytest.raises(UserError, match="line 2 has 0 tabs"):
        answers(folders["classifier"], ["a\tb", "c"], pairs=True)


def test_tags_of_words(folders: dict[str, Path]) -> None:
    lines = ["the cats sat.", "\u200b dog", " ".join(["cats"] * 20), ""]
    found, cut = answers(folders["tagger"], lines)
    tokenizer = AutoTokenizer.from_pretrained(folders["tagger"])
    model = NarrowBertForTokenClassification.from_pretrained(folders["tagger"])
    assert cut == 1
    for line, answer in zip(lines[:3], found, strict=False):
        words = line.split()
        inputs = tokenizer(words, is_split_into_words=True, return_tensors="pt", truncation=True, max_length=16)
        with torch.no_grad():
            tags = model(**inputs).logits[0].argmax(-1).tolist()
        expected: list[str | None] = [None] * len(words)
        for position in reversed(range(len(tags))):
            if (word := inputs.word_ids()[position]) is not None:
                expected[word] = ["O", "B-x", "I-x"][tags[position]]
        assert answer["tags"] == expected
    assert found[1]["tags"][0] is None  # a word without any token
    assert found[2]["tags"][7:] == [None] * 13
    assert found[3]["tags"] == []


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 100))
def test_batches_hold_every_text_once_and_no_more_than_their_tokens(lengths: list[int], batch_tokens: int) -> None:
    batches = list(batches_by_length(lengths, batch_tokens))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= batch_tokens
    order = [lengths[index] for batch in batches for index in batch]
    assert order == sorted(order)


def test_first_subwords() -> None:
    assert first_subwords([None, 0, 0, 1, 2, 2, None]) == [1, 3, 4]
    assert first_subwords([0, 1, 1]) == [0, 1]


@pytest.mark.parametrize(
    ("name", "options", "line", "expected"),
    [
        ("encoder", {}, b"caf\xe9", r"line 3 is not UTF-8 \(byte 4\)"),
        ("answers", {}, b"", "answers questions"),
        ("tagger", {"pairs": True}, b"a\tb", "leave out --pairs"),
        ("encoder", {"max_length": 17}, b"", "--max_length is 3 to the model's 16, not 17"),
        ("encoder", {"batch_tokens": 0}, b"", "at least 1"),
        ("nothing", {}, b"", "no model folder"),
        ("broken", {}, b"", "cannot load the model .* lacks 1 tensors"),
        ("roberta", {}, b"", "is a roberta, by its config.json: give a NarrowBERT or a BERT"),
    ],
)
def test_mistakes_are_one_line(
    folders: dict[str, Path], tmp_path: Path, name: str, options: dict[str, Any], line: bytes, expected: str
) -> None:
    folder = folders.get(name, tmp_path / name)
    if name == "broken":
        from safetensors.torch import load_file, save_file

        shutil.copytree(folders["encoder"], folder)
        weights = load_file(folder / "model.safetensors")
        weights.pop("bert.encoder_narrow.layer.0.attention.self.query.weight")
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    if name == "roberta":
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "roberta"}')
    with pytest.raises(UserError, match=expected):
        encode(EncodeOptions(model=folder, **options), [b"a\tb\n", b"b\tc\n", line], io.StringIO())


def test_a_byte_order_mark_is_no_part_of_the_first_text(folders: dict[str, Path]) -> None:
    output = io.StringIO()
    encode(EncodeOptions(model=folders["tagger"]), [b"\xef\xbb\xbfa cat\n", b"a cat\n"], output)
    first, second = output.getvalue().splitlines()
    assert first == second


@pytest.mark.parametrize("name", ["encoder", "classifier", "tagger"])
def test_what_is_no_number_is_refused(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(folders[name], tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["bert.embeddings.LayerNorm.bias"][:] = float("nan")
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="answers with what is no number: take --precision fp32"):
        answers(tmp_path / "model", ["a cat"])


@pytest.mark.parametrize(
    ("texts", "expected"), [(["a", None], "text 2 is None: give a string"), (["a", "b\ud800"], "text 2 holds half of")]
)
def test_texts_that_are_none_are_refused(folders: dict[str, Path], texts: Any, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        narrowbert.encode(folders["encoder"], texts)


@pytest.mark.slow
def test_the_command(folders: dict[str, Path]) -> None:
    command = [sys.executable, "-P", "-m", "pipeline", "encode", "--model", str(folders["classifier"])]
    lines = "a cat\nthe " + "dog " * 40
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True, timeout=300)
    assert [json.loads(line).keys() for line in done.stdout.splitlines()] == [{"label", "scores"}] * 2
    assert "1 texts were longer" in done.stderr
    assert "nowhere is no model folder" in user_error("pipeline", "encode", "--model", "nowhere")


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_pooling_of_an_export_is_the_default(tmp_path: Path, pooling: str) -> None:
    folder = write_folder(tmp_path / "tiny", NarrowBertForMaskedLM)
    write_pooling(folder, NarrowBertForMaskedLM.from_pretrained(folder).config, pooling)
    own, _ = answers(folder, LINES)
    assert own == answers(folder, LINES, pooling=pooling)[0]
    assert own != answers(folder, LINES, pooling={"cls": "mean", "mean": "cls"}[pooling])[0]
    found = narrowbert.encode(folder, LINES)
    assert np.allclose(found, [answer["embedding"] for answer in own], atol=1e-6)


@pytest.mark.parametrize(("model_type", "layout", "pooling"), [("bert", "3sf", "mean"), ("modernbert", "2sfwf", "cls")])
def test_a_plain_form_gives_the_same_embeddings(tmp_path: Path, model_type: str, layout: str, pooling: str) -> None:
    options = MODERN if model_type == "modernbert" else {}
    ours = write_folder(tmp_path / "ours", NarrowBertForMaskedLM, layout, **options)
    arguments: dict[str, Any] = {"layout": None, "tokenizer_path": None, "allow": [], "pooling": pooling}
    export_pretrained(ours, tmp_path / "plain", model_type=model_type, **arguments)
    found, cut = answers(tmp_path / "plain", LINES)
    for answer, wanted in zip(found, answers(ours, LINES, pooling=pooling)[0], strict=True):
        assert answer["embedding"] == pytest.approx(wanted["embedding"], abs=1e-5)
    assert cut == 1


@pytest.mark.parametrize("model_class", [NarrowBertForSequenceClassification, NarrowBertForTokenClassification])
def test_a_plain_bert_that_was_tuned_answers_alike(tmp_path: Path, model_class: Any) -> None:
    names = {0: "O", 1: "B-x", 2: "I-x"}
    ours = write_folder(tmp_path / "ours", model_class, "3sf", id2label=names)
    export_tuned(ours, tmp_path / "plain", "bert", None)
    lines = [line for line in LINES if line]
    found, wanted = (answers(folder, lines)[0] for folder in (tmp_path / "plain", ours))
    for answer, own in zip(found, wanted, strict=True):
        assert answer.get("tags") == own.get("tags")
        assert answer.get("scores", {}) == pytest.approx(own.get("scores", {}), abs=1e-5)
