"""``narrowbert finetune``: every task learns small files end to end; mistakes in files are one line."""

import csv
import dataclasses
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from data_prep.contract.command_line import UserError, read_config
from pipeline.export import NarrowBertForMaskedLM
from pipeline.finetune.config import (
    FinetuneConfig,
    FinetuneContrastive,
    FinetuneData,
    FinetuneTracking,
    FinetuneTraining,
    check_finetune,
)
from pipeline.finetune.files import read_file, to_iob2
from pipeline.finetune.results import Result, as_text, mean_and_deviation, read_result, write_results
from pipeline.finetune.tasks.base import inputs_of
from pipeline.finetune.tasks.contrastive import ContrastiveTask, info_nce
from pipeline.finetune.tasks.questions import QuestionTask
from pipeline.finetune.tasks.tagging import TaggingTask
from pipeline.finetune.tasks.text import TextTask
from pipeline.finetune.training import finetune
from tests.marks import long
from tests.processes import run_command, user_error
from tests.tiny_exports import WORDS, write_folder

PLAIN = [word for word in WORDS if word.isalpha() and word != "caf"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(
        tmp_path_factory.mktemp("models") / "tiny", NarrowBertForMaskedLM, max_position_embeddings=32,
        initializer_range=0.08, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip


def texts(count: int, seed: int) -> list[list[str]]:
    generator = random.Random(seed)
    return [[generator.choice(PLAIN) for _ in range(generator.randint(3, 8))] for _ in range(count)]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def configure(model: Path, folder: Path, task: Any, data: dict[str, Any], **training: Any) -> FinetuneConfig:
    options = {"epochs": 8.0, "learning_rate": 3e-3, "batch_size": 16, "max_length": 24, "seeds": (1,), **training}
    return FinetuneConfig(
        model=str(model), output=str(folder / "out"), task=task, data=FinetuneData(**data),
        training=FinetuneTraining(**options), tracking=FinetuneTracking(enabled=False),
    )  # fmt: skip


def files(folder: Path, make: Any) -> dict[str, str]:
    """A training and a validation file of what ``make(words)`` says of random words."""
    return {
        split: str(write_jsonl(folder / f"{split}.jsonl", [make(words) for words in texts(count, seed)]))
        for split, count, seed in (("train", 160, 1), ("validation", 40, 2))
    }


def results(config: FinetuneConfig) -> dict[str, Any]:
    finetune(config)
    return json.loads((Path(config.output) / "results.json").read_text())


def question(*, words: int, context: int) -> str:
    """An example of question answering, by the number of words of the question and of its context."""
    answers = {"text": [], "answer_start": []}
    return json.dumps({"text": "the " * words, "context": "the " * context, "label": answers}) + "\n"


# --- every task end to end ---------------------------------------------------------------------------


@pytest.mark.slow
def test_classification_learns_and_its_models_load_everywhere(model: Path, tmp_path: Path) -> None:
    data = files(tmp_path, lambda words: {"text": " ".join(words), "label": "cats" if "cat" in words else "none"})
    config = configure(model, tmp_path, "classification", data, seeds=(1, 2))
    found = results(config)
    assert found["mean"]["validation/accuracy"] > 0.85
    assert set(found["mean"]) == {f"validation/{name}" for name in ("accuracy", "f1", "f1_macro", "matthews")}
    each = [seed["metrics"]["validation/accuracy"] for seed in found["seeds"]]
    assert found["deviation"]["validation/accuracy"] == pytest.approx(np.std(each, ddof=1))
    table = (tmp_path / "out" / "results.md").read_text()
    assert "| seed " in table
    assert "| mean ± deviation |" in table
    tuned, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out" / "seed-1" / "model", output_loading_info=True
    )
    assert not any(info.values())
    assert tuned.config.id2label == {0: "cats", 1: "none"}
    # A seed that is done is not done again: its result is read.
    kept = tmp_path / "out" / "seed-2" / "result.json"
    record = json.loads(kept.read_text())
    record["metrics"]["validation/accuracy"] = 0.125
    kept.write_text(json.dumps(record))
    assert results(config)["seeds"][1]["metrics"]["validation/accuracy"] == 0.125
    # So it is in a folder of version 0.1, where ``output`` had another name.
    path = tmp_path / "out" / "config.json"
    path.write_text(path.read_text().replace('"output":', '"output_dir":'))
    assert results(config)["seeds"][1]["metrics"]["validation/accuracy"] == 0.125
    with pytest.raises(UserError, match="results of another configuration"):
        finetune(dataclasses.replace(config, task="multi_label"))


@pytest.mark.long
def test_several_gpus_change_neither_batches_nor_steps(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = transformers.TrainingArguments.__post_init__

    def find_eight(arguments: transformers.TrainingArguments) -> None:
        begin(arguments)
        _ = arguments.device
        arguments._n_gpu = 8

    monkeypatch.setattr(transformers.TrainingArguments, "__post_init__", find_eight)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    data = files(tmp_path, lambda words: {"text": " ".join(words), "label": "cats" if "cat" in words else "none"})
    said: list[str] = []
    found = finetune(configure(model, tmp_path, "classification", data, epochs=2.0), said.append)
    assert found.seeds[0].losses[-1][0] == 2 * 160 / 16
    assert said[0] == "one of 8 GPUs is used: on several the batch would be another one"


@pytest.mark.slow
def test_a_folder_of_results_is_known_by_what_its_version_knew_and_holds_no_secret(model: Path, tmp_path: Path) -> None:
    data = files(tmp_path, lambda words: {"text": " ".join(words), "label": "cats" if "cat" in words else "none"})
    config = configure(model, tmp_path, "classification", data, epochs=0.2)
    config = dataclasses.replace(
        config, model=str(model), data=dataclasses.replace(config.data, subset="api_key=planted")
    )
    results(config)
    path = tmp_path / "out/config.json"
    kept = json.loads(path.read_text())
    assert "planted" not in path.read_text()
    del kept["training"]["dropout"], kept["contrastive"]
    path.write_text(json.dumps(kept))
    results(config)
    path.write_text("")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        finetune(config)


@pytest.mark.long
def test_bf16_trains_without_a_gpu_and_fp16_says_that_it_needs_one(model: Path, tmp_path: Path) -> None:
    data = files(tmp_path, lambda words: {"text": " ".join(words), "label": "cats" if "cat" in words else "none"})
    config = configure(model, tmp_path, "classification", data, precision="bf16")
    assert results(config)["mean"]["validation/accuracy"] > 0.85
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="fp16 needs a GPU"):
            finetune(configure(model, tmp_path / "fp16", "classification", data, precision="fp16"))


def test_pairs_and_regression(model: Path, tmp_path: Path) -> None:
    def make(words: list[str]) -> dict[str, Any]:
        return {"one": " ".join(words[:2]), "two": " ".join(words[2:]), "score": float(words[0] in ("cat", "dog"))}

    data = {**files(tmp_path, make), "text": "one", "second_text": "two", "label": "score"}
    found = results(configure(model, tmp_path, "regression", data))
    assert found["mean"]["validation/pearson"] > 0.6
    assert {"validation/spearman", "validation/mean_squared_error"} <= set(found["mean"])


@pytest.mark.long
def test_several_labels(model: Path, tmp_path: Path) -> None:
    def make(words: list[str]) -> dict[str, Any]:
        return {"text": " ".join(words), "labels": [word for word in ("cat", "dog", "mat") if word in words]}

    found = results(
        configure(model, tmp_path, "multi_label", {**files(tmp_path, make), "label": "labels"}, epochs=12.0)
    )
    assert found["mean"]["validation/f1_micro"] > 0.8


@pytest.mark.slow
def test_tagging_of_conll_files(model: Path, tmp_path: Path) -> None:
    data = {}
    for split, count, seed in (("train", 160, 1), ("validation", 40, 2)):
        lines = ["-DOCSTART- -X- O\n\n"]
        for words in texts(count, seed):
            tags = ["B-animal" if word in ("cat", "dog") else "O" for word in words]
            lines += [f"{word} NN {tag}\n" for word, tag in zip(words, tags, strict=True)] + ["\n"]
        (tmp_path / f"{split}.conll").write_text("".join(lines))
        data[split] = str(tmp_path / f"{split}.conll")
    found = results(configure(model, tmp_path, "tagging", data))
    assert found["mean"]["validation/f1"] > 0.9
    assert found["examples"] == {"train": 160, "validation": 40}


@pytest.mark.slow
def test_answers_of_squad_files(model: Path, tmp_path: Path) -> None:
    """The answer is the word after "dog"; contexts are longer than a window."""
    data = {}
    for split, count, seed in (("train", 240, 1), ("validation", 30, 2)):
        questions = []
        for number, words in enumerate(texts(count, seed)):
            plain = [word for word in words if word != "dog"] or ["mat"]
            place = number % len(plain)
            filler = ["on"] * (number % 20)
            context = " ".join([*filler, *plain[:place], "dog", *plain[place:]])
            start = context.index("dog ") + 4
            answer = {"text": plain[place], "answer_start": start}
            questions.append(
                {"context": context, "qas": [{"id": str(number), "question": "the dog", "answers": [answer]}]}
            )
        path = tmp_path / f"{split}.json"
        path.write_text(json.dumps({"version": "1.1", "data": [{"title": "x", "paragraphs": questions}]}))
        data[split] = str(path)
    config = configure(
        model, tmp_path, "question_answering", {**data, "text": "question", "label": "answers"},
        window_stride=6, epochs=15.0,
    )  # fmt: skip
    found = results(config)
    assert found["mean"]["validation/exact_match"] > 0.6
    assert found["mean"]["validation/f1"] >= found["mean"]["validation/exact_match"]


@pytest.mark.slow
@pytest.mark.parametrize(("pooling", "span"), [long("cls", 0), ("mean", 2)])
def test_embeddings_from_plain_text(model: Path, tmp_path: Path, pooling: Any, span: int) -> None:
    (tmp_path / "train.txt").write_text("".join(" ".join(words) + "\n\n" for words in texts(200, 1)))
    pairs = [
        {"text": " ".join(a), "second": " ".join(b), "score": len({*a} & {*b}) / len({*a} | {*b})}
        for one, two in zip(texts(60, 2), texts(60, 3), strict=True)
        for a, b in [(one, two[:3] + one[3:])]
    ]
    data = {"train": str(tmp_path / "train.txt"), "second_text": "second", "label": "score"}
    data["validation"] = str(write_jsonl(tmp_path / "pairs.jsonl", pairs))
    config = dataclasses.replace(
        configure(model, tmp_path, "contrastive", data, learning_rate=1e-3, dropout=0.2),
        contrastive=FinetuneContrastive(pooling=pooling, masked_span=span),
    )
    losses = results(config)["seeds"][0]["losses"]
    assert losses[-1][1] < 0.75 * losses[0][1]
    assert results(config)["mean"]["validation/spearman"] > 0.4
    import sentence_transformers

    folder = tmp_path / "out" / "seed-1" / "model"
    found = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(["the cat sat"])
    tokens = transformers.AutoTokenizer.from_pretrained(folder)("the cat sat", return_tensors="pt")
    with torch.no_grad():
        hidden = transformers.AutoModel.from_pretrained(folder)(**tokens).last_hidden_state[0]
    assert np.allclose(found[0], (hidden[0] if pooling == "cls" else hidden.mean(0)).numpy(), atol=1e-5)


@pytest.mark.slow
def test_the_command_logs_to_mlflow(model: Path, tmp_path: Path) -> None:
    data = files(tmp_path, lambda words: {"text": " ".join(words), "label": int("cat" in words)})
    (tmp_path / "task.yaml").write_text(
        f"model: {model}\noutput: out\ndata:\n  train: {data['train']}\n  validation: {data['validation']}\n"
        "training:\n  epochs: 1\n  max_length: 24\n  seeds: [3, 4]\n"
    )
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    done = run_command("pipeline", "finetune", "--config", "task.yaml", cwd=tmp_path, MLFLOW_TRACKING_URI=store)
    assert "mean ± deviation" in done.stdout
    import mlflow

    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name("narrowbert-finetune")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert run.data.metrics["validation/accuracy/mean"] == pytest.approx(written["mean"]["validation/accuracy"])
    assert "seed-4/train/loss" in run.data.metrics
    assert run.data.params["training.learning_rate"] == "2e-05"
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"results.json", "results.md"}
    # Given again it logs nothing again; another seed makes other results.
    for seeds, runs in (("[3, 4]", 1), ("[3, 4, 5]", 2)):
        argv = ["finetune", "--config", "task.yaml", "--training.seeds", seeds]
        run_command("pipeline", *argv, cwd=tmp_path, MLFLOW_TRACKING_URI=store)
        assert len(client.search_runs([experiment.experiment_id])) == runs


# --- files --------------------------------------------------------------------------------------------


def a_config(**data: Any) -> FinetuneConfig:
    return FinetuneConfig(data=FinetuneData(**data))


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    rows = [{"text": 'a "cat", sat', "label": "x"}, {"text": "the dog", "label": "y"}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "a.tsv").write_text("\ufefftext\tlabel\r\n" + "".join(f"{r['text']}\t{r['label']}\r\n" for r in rows))
    for suffix in ("jsonl", "parquet", "csv", "tsv"):
        assert read_file(tmp_path / f"a.{suffix}", a_config()) == rows


def test_conll_columns_and_schemes(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text("EU NNP I-ORG\nof O\nin\tO\n\n\nA\tI-PER\nB\tI-PER\nC\tB-PER\nD\tI-LOC")
    assert read_file(path, a_config(text="tokens", label="tags")) == [
        {"tokens": ["EU", "of", "in"], "tags": ["B-ORG", "O", "O"]},
        {"tokens": ["A", "B", "C", "D"], "tags": ["B-PER", "I-PER", "B-PER", "B-LOC"]},
    ]


@given(st.lists(st.sampled_from(["O", "I-a", "B-a", "I-b", "B-b"])))
def test_iob2_begins_every_entity_and_changes_it_no_more(tags: list[str]) -> None:
    converted = to_iob2(tags)
    for before, tag in zip(["O", *converted], converted, strict=False):
        assert tag[0] != "I" or before[2:] == tag[2:]
    assert to_iob2(converted) == converted
    assert [tag[1:] for tag in converted] == [tag[1:] for tag in tags]


def test_a_data_set_of_the_library_gives_names_of_classes(model: Path, tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    rows = datasets.Dataset.from_dict({"sentence": ["a cat", "the dog"], "label": [1, 0]}, features=features)
    rows.to_parquet(tmp_path / "train.parquet")
    from pipeline.finetune.files import read_splits

    data = {"dataset": str(tmp_path), "train": "train", "text": "sentence"}
    config = configure(model, tmp_path, "classification", data)
    assert [row["label"] for row in read_splits(config)["train"]] == ["good", "bad"]


@pytest.mark.parametrize(
    ("name", "content", "options", "expected"),
    [
        ("a.jsonl", "", {}, "holds no examples"),
        ("a.jsonl", '{"text": "a", "label": 1}\nx\n', {}, "line 2 is not JSON"),
        ("a.jsonl", '[1]\n', {}, "line 1 is not a JSON object"),
        ("a.jsonl", '{"txt": "a", "label": 1}\n', {}, r"example 1 has no field 'text' \(it has label, txt\)"),
        ("a.jsonl", '{"text": "a", "label": 1}\n', {"second_text": "b"}, "no field 'b'"),
        ("a.csv", "text,label\na\n", {}, "line 2 has not as many columns"),
        ("a.doc", "x", {}, "is none of .jsonl"),
        ("b.jsonl", None, {}, "no file"),
        ("a.conll", "EU\n", {}, "line 1 has no tag after 'EU'"),
        ("a.json", "{}", {}, "neither SQuAD's format, nor a list of records"),
        ("a.json", '{"data": ', {}, "cannot read"),
        ("a.parquet", "x", {}, "cannot read"),
        ("a.jsonl", '{"text": "a", "label": 1}\n', {}, "has one label only: 1"),
        (
            "a.jsonl",
            '{"text": "a", "label": 1}\n{"text": "a", "label": 2}\n',
            {"positive_label": "3"},
            "data.positive_label '3' is none of 1, 2",
        ),
        ("a.jsonl", '{"text": "a", "label": [1]}\n', {}, r"'label' is \[1\], not one label"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n', {"task": "regression"}, "example 1: 'label' is 'x', not a number"),
        ("a.jsonl", '{"text": "a", "label": 1}\n', {"task": "multi_label"}, "not a list of labels"),
        ("a.jsonl", '{"text": ["a"], "label": "x"}\n', {"task": "tagging"}, "are to be lists of words and of tags"),
        ("a.jsonl", '{"text": ["a"], "label": []}\n', {"task": "tagging"}, "1 words in 'text', 0 tags in 'label'"),
        ("a.jsonl", '{"text": ["a"], "label": ["PER"]}\n', {"task": "tagging"}, "tag 'PER' in 'label' is neither O"),
        (
            "a.jsonl",
            '{"text": "q", "context": "abc", "label": {"text": ["x"], "answer_start": [1]}}\n',
            {"task": "question_answering"},
            "the answer 'x' is not at character 1",
        ),
        ("a.jsonl", '{"text": "q", "label": "x"}\n', {"task": "question_answering"}, "no field 'context'"),
        (
            "a.jsonl",
            '{"text": "q", "context": "abc", "label": {"text": ["abc", "b"], "answer_start": [0]}}\n',
            {"task": "question_answering"},
            r"a\.jsonl, example 1: text and answer_start of 'label' are not lists of the same length",
        ),
        ("a.jsonl", question(words=40, context=3), {"task": "question_answering"}, "its question has 40 tokens"),
        ("a.jsonl", question(words=19, context=3), {"task": "question_answering"}, "leaves 2 of training.max_length"),
        ("a.jsonl", question(words=18, context=30), {"task": "question_answering"}, "no more than training.window_st"),
    ],
)  # fmt: skip
def test_mistakes_in_files_are_one_line(
    model: Path, tmp_path: Path, name: str, content: str | None, options: dict[str, Any], expected: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    task = options.get("task", "classification")
    data = {"train": str(tmp_path / name), **{k: v for k, v in options.items() if k != "task"}}
    config = configure(model, tmp_path, task, data, window_stride=4)
    with pytest.raises(UserError, match=expected) as error:
        finetune(config)
    assert "\n" not in str(error.value)
    assert not Path(config.output).exists(), "the mended command would be refused"


@pytest.mark.parametrize(
    ("options", "expected"), [({"precision": "fp16"}, "needs a GPU"), ({"max_length": 99}, "reads")]
)
def test_what_the_model_cannot_do_leaves_nothing(
    model: Path, tmp_path: Path, options: dict[str, Any], expected: str
) -> None:
    train = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    config = configure(model, tmp_path, "classification", {"train": str(train), "validation": str(train)}, **options)
    with pytest.raises(UserError, match=expected):
        finetune(config)
    assert not Path(config.output).exists()


TASKS = {
    "classification": [{"text": "a cat", "label": "x"}, {"text": "a dog", "label": "y"}],
    "regression": [{"text": "a cat", "label": 1}, {"text": "a dog", "label": 2}],
    "multi_label": [{"text": "a cat", "label": ["x"]}, {"text": "a dog", "label": ["y"]}],
    "tagging": [{"text": ["a", "cat"], "label": ["O", "B-x"]}, {"text": ["a"], "label": ["O"]}],
    "question_answering": [
        {"text": "the cat", "context": "the dog ran", "label": {"text": ["dog"], "answer_start": [4]}},
        {"text": "the mat", "context": "the dog ran", "label": {"text": [], "answer_start": []}},
    ],
    "contrastive": [
        {"text": "a cat", "second": "a dog", "label": 1},
        {"text": "a mat", "second": "the mat", "label": 2},
    ],
}  # fmt: skip


def squad(**question: Any) -> str:
    asked = {"id": "1", "question": "the cat", "answers": [{"text": "dog", "answer_start": 4}], **question}
    return json.dumps({"data": [{"paragraphs": [{"context": "the dog ran", "qas": [asked]}]}]})


@pytest.mark.parametrize(
    ("task", "changes", "expected"),
    [
        *((task, {"label": None}, "'label' is null") for task in TASKS if task != "contrastive"),
        *((task, {"text": None}, "'text' is null") for task in TASKS),
        *((task, {"text": {"a": 1}}, "'text' (holds|is) {'a': 1}, not") for task in TASKS),
        ("classification", {"label": float("nan")}, "'label' is null"),
        ("classification", {"text": "a\ud800"}, r"character 2 of 'text' is .ud800, half of a character"),
        ("classification", {"text": ["a", "cat"]}, r"'text' is \['a', 'cat'\], not one text"),
        ("regression", {"label": "x"}, "'label' is 'x', not a number"),
        ("regression", {"label": "inf"}, "'label' is 'inf', not a finite number"),
        ("multi_label", {"label": ["x", None]}, "'label' is null or holds null"),
        ("multi_label", {"label": [["x"]]}, "not a list of labels"),
        ("tagging", {"text": ["a", None]}, "'text' is null or holds null"),
        ("tagging", {"text": "a cat"}, "'text' is 'a cat', not a list of words"),
        ("tagging", {"label": ["O", "cat"]}, "tag 'cat' in 'label' is neither"),
        ("question_answering", {"context": None}, "'context' is null"),
        ("question_answering", {"context": 5}, "'text' and 'context' are to be texts"),
        ("question_answering", {"label": {"text": ["dog"], "answer_start": ["4"]}}, "the answer 'dog' at '4', not a"),
        ("question_answering", {"label": {"text": ["dog"], "answer_start": [None]}}, "the answer 'dog' at None, not a"),
        ("question_answering", {"label": {"text": [4], "answer_start": [4]}}, "the answer 4 at 4, not a text at"),
        ("question_answering", {"label": {"text": ["ran"], "answer_start": [-3]}}, "is not at character -3"),
        ("question_answering", {"label": {"text": [" "], "answer_start": [3]}}, "'label' has an empty answer"),
        ("question_answering", {"label": {"text": "dog", "answer_start": 4}}, "are not lists of the same length"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_is_named(
    model: Path, tmp_path: Path, task: str, changes: dict[str, Any], expected: str
) -> None:
    rows = [*TASKS[task], TASKS[task][0] | changes]
    data = {"train": str(write_jsonl(tmp_path / "a.jsonl", rows))}
    with pytest.raises(UserError, match=rf"a\.jsonl, example 3: .*{expected}") as error:
        finetune(configure(model, tmp_path, task, data, window_stride=4))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", squad(answers=None), r"a\.json, article 1 is not SQuAD's"),
        ("a.json", squad(answers=["dog"]), r"a\.json, article 1 is not SQuAD's"),
        ("a.json", squad(answers=[{"text": "dog"}]), "article 1 is not SQuAD's: it has no 'answer_start'"),
        ("a.json", squad(question=None), r"a\.json, example 1: 'text' is null"),
        ("a.json", "[1]", r"a\.json, record 1 is not a JSON object"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}\n', r"a\.jsonl, line 2 is not UTF-8"),
        ("a.csv", b"text,label\ncaf\xe9,x\n", r"a\.csv, line 2 is not UTF-8"),
        ("a.csv", "text,text,label\na,b,c\n", r"a\.csv, line 1 names the column 'text' twice"),
    ],
)
def test_a_file_that_cannot_be_read_says_where(
    model: Path, tmp_path: Path, name: str, content: str | bytes, expected: str
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=expected):
        finetune(configure(model, tmp_path, "question_answering", {"train": str(tmp_path / name)}, window_stride=4))


def test_json_may_be_a_list_of_records_or_a_record_a_line(tmp_path: Path) -> None:
    rows = TASKS["classification"]
    texts = (json.dumps(rows), "\ufeff" + json.dumps({"data": rows}, indent=1), "\n".join(map(json.dumps, rows)))
    for text in texts:
        (tmp_path / "a.json").write_text(text)
        assert read_file(tmp_path / "a.json", a_config()) == rows


def test_a_field_of_a_csv_may_be_long(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "cat " * 40_000 + ",x\n")
    assert len(read_file(tmp_path / "a.csv", a_config())[0]["text"]) == 160_000


@pytest.mark.parametrize("on", [1, True, 1.0])
def test_a_list_that_says_of_every_label_whether_it_holds_names_places(model: Path, tmp_path: Path, on: Any) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    hot = {"train": [[0, on, 0], [on, on, 0]], "validation": [[0, 0, on], [0, on, 0]]}
    rows = {
        split: [{"text": "a", "label": [type(on)(x) for x in label]} for label in lists] for split, lists in hot.items()
    }
    config = configure(model, tmp_path, "multi_label", {"train": "a.jsonl", "validation": "b.jsonl"})
    task = TextTask(config, rows, tokenizer)
    assert task.model_options["id2label"] == {0: "0", 1: "1", 2: "2"}
    assert [feature["labels"] for feature in task.features("train")] == [[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]]
    rows["validation"][1]["label"] = [type(on)(1)]
    with pytest.raises(UserError, match=r"b\.jsonl, example 2: 'label' says of 1 labels .*, the first example of 3"):
        TextTask(config, rows, tokenizer)
    named = [{"text": "a", "label": [0, 1]}, {"text": "b", "label": [1]}]  # lists of labels whose names are numbers
    assert TextTask(config, {"train": named}, tokenizer).labels["train"] == [["0", "1"], ["1"]]


def test_classes_of_a_data_set_that_are_not_published_are_named(model: Path, tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    for label in (-1, None):
        rows = datasets.Dataset.from_dict({"text": ["a cat", "the dog"], "label": [1, label]}, features=features)
        rows.to_parquet(tmp_path / "train.parquet")
        config = configure(model, tmp_path, "classification", {"dataset": str(tmp_path), "train": "train"})
        with pytest.raises(UserError, match=f"train, example 2: 'label' is {label}, none of the 2 classes"):
            finetune(config)


@pytest.mark.parametrize(
    ("task", "rows", "expected"),
    [
        ("regression", TASKS["regression"][:1], r"b\.jsonl: 'label' is 1.0 in all 1 examples"),
        ("regression", TASKS["regression"][:1] * 3, r"b\.jsonl: 'label' is 1.0 in all 3 examples"),
        ("contrastive", TASKS["contrastive"][:1], r"b\.jsonl: 'label' is 1.0 in all 1 examples"),
    ],
)
def test_a_correlation_that_would_be_none_is_refused_before_training(
    model: Path, tmp_path: Path, task: str, rows: list[dict[str, Any]], expected: str
) -> None:
    train = write_jsonl(tmp_path / "a.jsonl", TASKS[task])
    data = {"train": str(train), "validation": str(write_jsonl(tmp_path / "b.jsonl", rows)), "second_text": None}
    if task == "contrastive":
        data["second_text"] = "second"
    with pytest.raises(UserError, match=expected):
        finetune(configure(model, tmp_path, task, data))


@pytest.mark.parametrize("rows", [["a cat"], ["a cat"] * 9])
def test_a_text_without_another_to_compare_it_with_is_refused(model: Path, tmp_path: Path, rows: list[str]) -> None:
    (tmp_path / "a.txt").write_text("\n".join(rows))
    with pytest.raises(UserError, match=r"a\.txt has fewer than two different texts"):
        finetune(configure(model, tmp_path, "contrastive", {"train": str(tmp_path / "a.txt")}))


def test_what_is_no_number_is_null_and_undefined(tmp_path: Path) -> None:
    results = [
        Result(seed=seed, metrics={"validation/pearson": x}, losses=[[1, 0.5]]) for seed, x in ((1, np.nan), (2, 1.0))
    ]
    config = a_config()
    table = write_results(tmp_path, config, results, "pearson", {"train": 2}, {"train": 0})
    assert table.splitlines()[2].split() == ["|", "1", "|", "undefined", "|"]
    assert "undefined ± undefined" in table
    text = (tmp_path / "results.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["seeds"][0]["metrics"] == {"validation/pearson": None}
    (tmp_path / "result.json").write_text(as_text(dataclasses.asdict(results[0])))
    assert np.isnan(read_result(tmp_path / "result.json").metrics["validation/pearson"])
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"result\.json is damaged"):
        read_result(tmp_path / "result.json")


def test_a_model_that_diverged_has_no_figures(model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["bert.embeddings.LayerNorm.bias"][:] = float("inf")
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    path = str(write_jsonl(tmp_path / "a.jsonl", TASKS["regression"]))
    with pytest.raises(UserError, match="seed 1 has diverged"):
        finetune(configure(tmp_path / "model", tmp_path, "regression", {"train": path, "validation": path}))


def test_labels_that_training_does_not_know_are_named(model: Path, tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    other = write_jsonl(tmp_path / "b.jsonl", [{"text": "a", "label": "z"}])
    with pytest.raises(UserError, match=r"the validation split has labels that .* not: z \(it has x, y\)"):
        finetune(configure(model, tmp_path, "classification", {"train": str(train), "validation": str(other)}))


# --- configuration --------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", sorted(Path("configs/finetune").glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_are_read_and_complete(preset: Path, model: Path) -> None:
    config = read_config(FinetuneConfig, ["--config", str(preset), "--model", str(model)], "x", "x")
    check_finetune(config)
    text = preset.read_text()
    assert text.startswith("# ")
    assert "# Hyperparameters: " in text
    for key in ("epochs", "learning_rate", "warmup_fraction", "weight_decay", "batch_size", "max_length", "seeds"):
        assert f"  {key}: " in text


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--model", ""], "no model"),
        (["--model", "nowhere"], "nowhere is no model folder"),
        (["--training.seeds", "[1, 1]"], "each once"),
        (["--training.epochs", "0"], "training.epochs is 0"),
        (["--training.epochs", ".inf"], "training.epochs is inf"),
        (["--training.learning_rate", ".nan"], "training.learning_rate is nan"),
        (["--training.weight_decay", ".nan"], "training.weight_decay is nan"),
        (["--training.dropout", "1"], "training.dropout is 1"),
        (["--training.seeds", "[-1]"], "training.seeds has -1: give numbers from 0 to 4294967295"),
        (["--training.seeds", "[4294967296]"], "training.seeds has 4294967296"),
        (["--task", "contrastive", "--training.batch_size", "1"], "training.batch_size is 1"),
        (["--training.max_length", "4"], "at least 8"),
        (["--task", "question_answering"], "training.window_stride is 128: give 1 to 63"),
        (["--task", "tag"], "task"),
        (["--data.txt", "x"], "did you mean 'data.text'"),
        ([], "nothing to measure on"),
        (["--contrastive.temperature", "0"], "contrastive.temperature"),
        (["--task", "contrastive", "--data.validation", "x"], "is measured on pairs"),
    ],
)
def test_mistakes_in_the_configuration(model: Path, options: list[str], expected: str) -> None:
    arguments = ["--model", str(model), "--output", "x", *options]
    with pytest.raises(UserError, match=expected):
        check_finetune(read_config(FinetuneConfig, arguments, "narrowbert finetune", "x"))


@pytest.mark.parametrize("max_length", range(8, 20))
def test_any_stride_of_those_advised_is_accepted(model: Path, max_length: int) -> None:
    def configured(stride: int) -> FinetuneConfig:
        training = FinetuneTraining(max_length=max_length, window_stride=stride)
        data = FinetuneData(validation="x")
        return FinetuneConfig(model=str(model), output="x", task="question_answering", training=training, data=data)

    with pytest.raises(UserError, match="window_stride is 99") as caught:
        check_finetune(configured(99))
    first, last = map(int, re.findall(r"give (\d+) to (\d+)", str(caught.value))[0])
    for stride in range(first, last + 1):
        check_finetune(configured(stride))


@pytest.mark.slow
def test_a_mistake_of_the_command_is_one_line() -> None:
    assert "nowhere is no model folder" in user_error("pipeline", "finetune", "--model", "nowhere", "--output", "x")


# --- figures ----------------------------------------------------------------------------------------------


def test_best_span_of_all_windows_against_a_search_of_every_span(model: Path, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    context = "the cat sat on the mat the dog ran on a road the cats sat a dog ran"
    row = {"text": "a cat", "context": context, "label": {"text": [], "answer_start": []}}
    config = configure(model, tmp_path, "question_answering", {"train": "x"}, max_length=12, window_stride=3)
    task = QuestionTask(config, {"train": [row]}, tokenizer)
    (windows,) = task.windows["train"]
    assert len(windows) > 2
    generator = np.random.default_rng(0)
    for trial in range(20):
        starts, ends = generator.normal(size=(2, len(windows), 12))
        starts[:, 0] += 10 * (trial % 2)  # every other time there is no answer
        spans = [
            (starts[w, i] + ends[w, j], context[window.offsets[i][0] : window.offsets[j][1]])
            for w, window in enumerate(windows)
            for i, first in enumerate(window.sequence_ids)
            for j, last in enumerate(window.sequence_ids)
            if first == last == 1 and i <= j
        ]
        best, text = max(spans)
        nothing = min(starts[w, 0] + ends[w, 0] for w in range(len(windows)))
        assert (nothing > best) == (trial % 2 == 1)
        assert task.answer(context, windows, starts, ends) == ("" if nothing > best else text)


@pytest.mark.parametrize("answer", ["dog ran", " dog ran "])
def test_spans_are_the_answers_tokens(model: Path, tmp_path: Path, answer: str) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    context = "the cat sat on the mat the dog ran on a road"
    row = {"text": "a", "context": context, "label": {"text": [answer], "answer_start": [context.index(answer)]}}
    config = configure(model, tmp_path, "question_answering", {"train": "x"}, max_length=10, window_stride=3)
    task = QuestionTask(config, {"train": [row]}, tokenizer)
    held = 0
    for feature in task.features("train"):
        span = feature["input_ids"][feature["start_positions"] : feature["end_positions"] + 1]
        words = tokenizer.decode(span)
        assert words in ("dog ran", "[CLS]")
        held += words == "dog ran"
    assert held >= 1


def test_words_that_are_cut_count_as_wrong(model: Path, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    row = {"text": ["cats"] * 8, "label": ["B-x"] * 8}
    config = configure(model, tmp_path, "tagging", {"train": "x"}, max_length=10)
    task = TaggingTask(config, {"train": [row, {"text": ["a"], "label": ["O"]}]}, tokenizer)
    assert task.cut("train") == 1
    labels = [feature["labels"] for feature in task.features("train")]
    assert labels[0] == [-100, *[task.numbers["B-x"], -100] * 4, -100]  # cat ##s
    perfect = torch.nn.functional.one_hot(torch.tensor([[max(0, x) for x in labels[0]], [2] * 10]), 3).numpy()
    figures = task.metrics("train", perfect)
    assert figures["recall"] == 0.5
    assert figures["precision"] == 1.0


@pytest.mark.parametrize(("positive", "expected"), [("no", 2 / 3), ("yes", 0.8), (None, 0.8)])
def test_f1_is_that_of_the_positive_label(model: Path, tmp_path: Path, positive: str | None, expected: float) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    rows = [{"text": "a", "label": label} for label in ("yes", "no", "yes", "no")]
    config = configure(model, tmp_path, "classification", {"train": "x", "positive_label": positive})
    task = TextTask(config, {"train": rows}, tokenizer)
    figures = task.metrics("train", np.array([[0, 1], [1, 0], [0, 1], [0, 1]]))  # yes, no, yes, yes
    assert figures["f1"] == pytest.approx(expected)
    assert figures["accuracy"] == 0.75


def test_info_nce_against_its_definition() -> None:
    first, second = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cosines = [[float(a @ b / a.norm() / b.norm()) for b in second] for a in first]
    expected = np.mean(
        [-np.log(np.exp(row[i] / 0.1) / np.exp(np.array(row) / 0.1).sum()) for i, row in enumerate(cosines)]
    )
    assert info_nce(first, second, 0.1).item() == pytest.approx(expected, abs=1e-5)


def test_a_masked_span_leaves_the_ends_and_the_padding_alone(model: Path, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    rows = [{"text": "the cat sat on a mat"}, {"text": "dog"}, {"text": ""}]
    config = configure(model, tmp_path, "contrastive", {"train": "x"})
    config = dataclasses.replace(config, contrastive=FinetuneContrastive(masked_span=2))
    task = ContrastiveTask(config, {"train": rows}, tokenizer)
    seen = set()
    for _ in range(50):
        batch = task.collator(task.features("train"))
        masked = batch["other_ids"] != batch["input_ids"]
        assert (batch["other_ids"][masked] == tokenizer.mask_token_id).all()
        assert masked.sum(1).tolist() == [2, 1, 0]
        places = masked[0].nonzero().flatten().tolist()
        assert places[1] == places[0] + 1
        seen.add(places[0])
    assert seen == {1, 2, 3, 4, 5}
    assert "other_ids" not in task.collator([inputs_of(task.encodings["train"][0])])  # measured texts


def test_mean_and_deviation() -> None:
    assert mean_and_deviation([0.5]) == (0.5, 0.0)
    assert mean_and_deviation([1.0, 2.0, 3.0]) == (2.0, 1.0)
