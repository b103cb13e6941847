"""Checkpoints of a run as exports: one of them by its step, or all as revisions of a git folder."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from pipeline.checkpoints.reading import read_tensors
from pipeline.export.folder import pooling_of
from pipeline.runs.records import read_metrics
from tests.processes import TINY_RUN, run_command, user_error

pytestmark = pytest.mark.slow

EMBEDDINGS = "bert.embeddings.word_embeddings.weight"
STEPS = (4, 8, 10)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, shard_folder: Path) -> Path:
    """Ten steps, saved after 4, 8 and 10, evaluated after 4 and 8 and at the end; to be read only."""
    folder = tmp_path_factory.mktemp("revisions") / "run"
    run_command(
        "pipeline", "train", *TINY_RUN, "--run_dir", str(folder), "--data.path", str(shard_folder), "--model.layout",
        "sf:sf", "--training.precision", "fp32", "--optimizer.lr", "0.05", "--training.eval_interval", "4",
    )  # fmt: skip
    return folder


def export(run: str, output: Path, *options: str) -> str:
    return run_command("pipeline", "export", run, "--output", str(output), *options).stdout


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True).stdout


def embeddings(run_dir: Path, step: int) -> torch.Tensor:
    return read_tensors(run_dir / f"checkpoints/step-{step:08d}", "weights")["embeddings.word_embeddings.weight"]


def test_every_checkpoint_is_a_revision(tmp_path: Path, run_dir: Path) -> None:
    printed = export(str(run_dir), tmp_path / "model", "--revisions", "--pooling", "cls")
    assert "3 revisions: step-4, step-8, step-10; main is the last" in printed
    assert git(tmp_path / "model", "status", "--porcelain") == ""
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    metrics = {name: dict(series) for name, series in read_metrics(run_dir).items()}
    for revision, step in [*((f"step-{step}", step) for step in STEPS), ("main", 10)]:
        clone = tmp_path / revision
        git(tmp_path, "clone", "--quiet", "--branch", revision, "model", str(clone))
        found, own = load_file(clone / "model.safetensors")[EMBEDDINGS], embeddings(run_dir, step)
        assert torch.equal(found, own[: len(found)]), revision
        assert pooling_of(clone) == "cls"
        card = ModelCard.load(clone / "README.md")
        assert card.text.strip().startswith("# model\n")
        values = {result.metric_type: result.metric_value for result in card.data.eval_results}
        expected = {"loss": metrics["validation/loss"], "accuracy": metrics["validation/masked_accuracy"]}
        assert values == {kind: round(series[step], 4) for kind, series in expected.items()}


def test_one_checkpoint_is_exported_by_its_step(tmp_path: Path, run_dir: Path) -> None:
    export(f"{run_dir}@4", tmp_path / "four")
    found = load_file(tmp_path / "four/model.safetensors")[EMBEDDINGS]
    assert torch.equal(found, embeddings(run_dir, 4)[: len(found)])
    assert not torch.equal(found, embeddings(run_dir, 10)[: len(found)])
    output = ["--output", str(tmp_path / "other")]
    said = user_error("pipeline", "export", f"{run_dir}@5", *output)
    assert "has no checkpoint of step 5: those there are of steps 4, 8, 10" in said
    said = user_error("pipeline", "export", f"{run_dir}@4", *output, "--revisions")
    assert "--revisions takes every checkpoint of RUN_DIR" in said
    assert [path.name for path in tmp_path.iterdir()] == ["four"]


def test_a_damaged_checkpoint_is_named_and_left_out(tmp_path: Path, run_dir: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    with next((copy / "checkpoints/step-00000008").glob("weights-*")).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    printed = export(str(copy), tmp_path / "model", "--revisions")
    assert "does not match its sha256" in printed
    assert git(tmp_path / "model", "tag").split() == ["step-10", "step-4"]
    assert "step-00000008" in user_error("pipeline", "export", f"{copy}@8", "--output", str(tmp_path / "eight"))
