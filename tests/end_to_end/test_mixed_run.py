"""A run on two shard folders mixed by weight, from its plan to its export."""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from data_prep.contract.shards import open_shards
from tests.processes import TINY_RUN, losses, run_command, user_error


def options(first: Path, second: Path, weights: str = "[3, 1]") -> list[str]:
    return [*TINY_RUN, "--training.precision", "fp32", "--data.path", f"[{first}, {second}]", "--data.weights", weights]


@pytest.fixture(scope="module")
def trained(shard_folder: Path, second_shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished, tracked run in `run`."""
    folder = tmp_path_factory.mktemp("mixed")
    argv = ["train", *options(shard_folder, second_shard_folder), "--run_dir", "run", "--processes", "2"]
    run_command("pipeline", *argv, "--tracking.enabled", "true", cwd=folder)
    return folder


@pytest.mark.slow
def test_records_name_both_folders(trained: Path, shard_folder: Path, second_shard_folder: Path) -> None:
    data = json.loads((trained / "run/run.json").read_text())["data"]
    folders = [shard_folder, second_shard_folder]
    assert data["path"] == [str(folder) for folder in folders]
    assert data["weights"] == [3, 1]
    assert data["root_hashes"] == [open_shards(folder).root_hash for folder in folders]
    saved = json.loads((trained / "run/checkpoints/step-00000010/trainer.json").read_text())
    assert saved["data_root_hash"] == data["root_hash"]
    with sqlite3.connect(trained / "mlflow.db") as store:
        ((name, digest),) = store.execute("select name, digest from datasets").fetchall()
    assert name == "+".join(folder.name for folder in folders)
    assert data["root_hash"].startswith(digest)
    points = [json.loads(line) for line in (trained / "run/metrics.jsonl").read_text().splitlines()]
    last = {key: value for point in points if point["step"] == 10 for key, value in point["metrics"].items()}
    rows = [open_shards(folder).split("train").num_rows for folder in folders]
    consumed = [last[f"train/source_epoch/{number}"] * size for number, size in enumerate(rows)]
    assert sum(consumed) == pytest.approx(160)
    assert consumed[0] == pytest.approx(120, abs=30)
    assert last["train/epoch"] == pytest.approx(160 / sum(rows))


@pytest.mark.long
def test_resume_with_moved_folders_and_other_workers_is_equal_to_the_bit(
    trained: Path, shard_folder: Path, second_shard_folder: Path, tmp_path: Path
) -> None:
    whole, run_dir, moved = losses(trained / "run"), tmp_path / "run", tmp_path / "moved"
    shutil.copytree(trained / "run", run_dir)
    shutil.copytree(second_shard_folder, moved)
    for newer in ("checkpoints/step-00000008", "checkpoints/step-00000010"):
        shutil.rmtree(run_dir / newer)
    for name in ("DONE", "metrics.jsonl"):
        (run_dir / name).unlink()
    argv = ["train", "--run_dir", str(run_dir), "--processes", "2"]
    for other, expected in [
        (options(shard_folder, moved, "[1, 1]"), "data.weights [3.0, 1.0] there, [1.0, 1.0] here"),
        (options(moved, shard_folder), "another configuration (the shards' contents)"),
    ]:
        assert expected in user_error("pipeline", *argv, *other)
    workers = ["--data.num_workers", "5", "--data.prefetch_factor", "1"]
    resumed = run_command("pipeline", *argv, *options(shard_folder, moved), *workers)
    assert f"resuming from {run_dir}/checkpoints/step-00000004" in resumed.stdout
    assert losses(run_dir) == {step: loss for step, loss in whole.items() if step > 4}


@pytest.mark.slow
def test_every_command_reads_a_mixture(
    trained: Path, shard_folder: Path, second_shard_folder: Path, tmp_path: Path
) -> None:
    planned = run_command("pipeline", "plan", *options(shard_folder, second_shard_folder)).stdout
    rows = [open_shards(folder).split("train").num_rows for folder in (shard_folder, second_shard_folder)]
    epochs = f"{120 / rows[0]:.2f} of {shard_folder}, {40 / rows[1]:.2f} of {second_shard_folder}"
    assert f"({160 / sum(rows):.2f} epochs: {epochs})" in planned
    series = [json.loads(line)["metrics"] for line in (trained / "run/metrics.jsonl").read_text().splitlines()]
    last = [metrics["validation/loss"] for metrics in series if "validation/loss" in metrics][-1]
    assert f"validation loss {last:.4f}" in run_command("pipeline", "evaluate", str(trained / "run")).stdout
    assert "run" in run_command("pipeline", "report", str(trained / "run")).stdout
    run_command("pipeline", "export", str(trained / "run"), "--output", str(tmp_path / "model"))
    assert (tmp_path / "model/model.safetensors").exists()


def test_several_folders_need_weights(shard_folder: Path, second_shard_folder: Path, tmp_path: Path) -> None:
    paths = f"[{shard_folder}, {second_shard_folder}]"
    line = user_error("pipeline", "train", *TINY_RUN, "--run_dir", str(tmp_path / "run"), "--data.path", paths)
    assert "data.path names 2 folders and data.weights is not given" in line
    assert not (tmp_path / "run").exists()
