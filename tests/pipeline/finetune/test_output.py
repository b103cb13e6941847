"""A folder of results given again: nothing is trained twice, lost, or passed off as of other data."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_prep.contract.command_line import UserError
from pipeline.export import NarrowBertForMaskedLM
from pipeline.finetune import seed as one_seed
from pipeline.finetune.config import FinetuneConfig, FinetuneData, FinetuneTracking, FinetuneTraining
from pipeline.finetune.training import finetune
from tests.full_disk import full_disk
from tests.tiny_exports import write_folder

ROWS = [{"text": "the cat sat", "label": "x"}, {"text": "the dog ran", "label": "y"}] * 2


@pytest.fixture(scope="module")
def shared_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("models") / "tiny", NarrowBertForMaskedLM)


@pytest.fixture
def config(shared_model: Path, tmp_path: Path) -> FinetuneConfig:
    """A quick classification of files in ``tmp_path``, by a model there."""
    shutil.copytree(shared_model, tmp_path / "model")
    for name in ("train", "validation"):
        write(tmp_path / f"{name}.jsonl", ROWS)
    return FinetuneConfig(
        model=str(tmp_path / "model"),
        output=str(tmp_path / "out"),
        data=FinetuneData(train=str(tmp_path / "train.jsonl"), validation=str(tmp_path / "validation.jsonl")),
        training=FinetuneTraining(epochs=1.0, max_length=8, seeds=(1,)),
        tracking=FinetuneTracking(enabled=False),
    )


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(config: FinetuneConfig) -> list[str]:
    said: list[str] = []
    finetune(config, said.append)
    return said


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds that are trained."""
    seeds: list[int] = []
    train = one_seed.Trainer.train

    def counted(trainer: Any, *arguments: Any, **options: Any) -> Any:
        seeds.append(trainer.args.seed)
        return train(trainer, *arguments, **options)

    monkeypatch.setattr(one_seed.Trainer, "train", counted)
    return seeds


@pytest.mark.parametrize("changed", ["data.train", "data.validation", "model"])
def test_what_has_changed_is_named(config: FinetuneConfig, tmp_path: Path, changed: str, trainings: list[int]) -> None:
    run(config)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(record["seeds"][0]["inputs"]) == {"data.train", "data.validation", "model"}
    if changed == "model":
        name = tmp_path / "model"
        (name / "model.safetensors").write_bytes((name / "model.safetensors").read_bytes()[:-1] + b"\0")
    else:
        name = tmp_path / f"{changed.removeprefix('data.')}.jsonl"
        write(name, [*ROWS, ROWS[0]])
    line = rf"{name} \({changed}\) has changed since .*seed-1 was made of it: name another output, or remove .*seed-1"
    with pytest.raises(UserError, match=line):
        run(config)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    shutil.rmtree(tmp_path / "out" / "seed-1")
    run(config)
    assert trainings == [1, 1]


def test_a_file_that_says_the_same_has_not_changed(
    config: FinetuneConfig, tmp_path: Path, trainings: list[int]
) -> None:
    run(config)
    rows = [{"label": row["label"], "unread": 1, "text": row["text"]} for row in ROWS]
    write(tmp_path / "train.jsonl", rows)
    run(config)
    assert trainings == [1]


def test_results_of_a_version_that_did_not_record_its_data_are_taken(
    config: FinetuneConfig, tmp_path: Path, trainings: list[int]
) -> None:
    run(config)
    path = tmp_path / "out" / "seed-1" / "result.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "inputs"}))
    said = run(config)
    assert trainings == [1]
    assert said[0] == "seed 1: an earlier version trained it and did not record of which examples and model"


def test_a_mistake_in_the_examples_leaves_the_folder_free(config: FinetuneConfig, tmp_path: Path) -> None:
    mistaken = dataclasses.replace(config, data=dataclasses.replace(config.data, train=str(tmp_path / "trian.jsonl")))
    with pytest.raises(UserError, match="no file"):
        run(mistaken)
    assert not (tmp_path / "out").exists()
    write(tmp_path / "trian.jsonl", ROWS)
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(UserError, match="no model folder"):
        run(mistaken)


def test_a_folder_without_results_may_become_another_configurations(config: FinetuneConfig, tmp_path: Path) -> None:
    run(config)
    other = dataclasses.replace(config, training=dataclasses.replace(config.training, epochs=2.0))
    with pytest.raises(UserError, match="results of another configuration"):
        run(other)
    (tmp_path / "out" / "seed-1" / "result.json").unlink()  # as if it had been stopped before
    run(other)
    with pytest.raises(UserError, match="results of another configuration"):
        run(dataclasses.replace(config, output=str(tmp_path / "model")))
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "narrowbert"


@pytest.mark.parametrize("task", ["classification", "contrastive"])
def test_a_metric_that_fails_costs_no_training(
    config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainings: list[int], task: Any
) -> None:
    config = dataclasses.replace(config, task=task)
    if task == "contrastive":
        write(tmp_path / "validation.jsonl", [{"text": "a", "b": "the", "label": n} for n in (1, 2)])
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, second_text="b"))
    direct = dataclasses.replace(config, output=str(tmp_path / "direct"))
    run(direct)
    with monkeypatch.context() as patch:
        patch.setattr(one_seed.Trainer, "predict", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(config)
    assert (tmp_path / "out" / "seed-1" / "model" / "model.safetensors").is_file()
    said = run(config)
    assert "seed 1: trained before, it is measured now" in said
    assert trainings == [1, 1]
    results = [json.loads((tmp_path / name / "seed-1" / "result.json").read_text()) for name in ("direct", "out")]
    assert results[0] == results[1]
    assert sorted(path.name for path in (tmp_path / "out" / "seed-1").iterdir()) == ["model", "result.json"]


@pytest.mark.parametrize("largest", [20_000, 80_000])
def test_a_model_that_cannot_be_written_is_one_line(config: FinetuneConfig, largest: int) -> None:
    with full_disk(largest), pytest.raises(UserError, match=r"cannot write .*seed-1/model: .*File too large"):
        run(config)
    run(config)


def test_training_that_diverges_keeps_nothing(config: FinetuneConfig, shared_model: Path, tmp_path: Path) -> None:
    weights = tmp_path / "model" / "model.safetensors"
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    tensors["bert.embeddings.LayerNorm.bias"][:] = float("inf")
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(UserError, match="seed 1 has diverged"):
        run(config)
    assert [path.name for path in (tmp_path / "out" / "seed-1").iterdir()] == ["trainer"]
    run(dataclasses.replace(config, training=dataclasses.replace(config.training, epochs=2.0), model=str(shared_model)))
