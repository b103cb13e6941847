"""Averaged weights: the mean of what went in, read like a run's, or refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data_prep.contract.command_line import UserError
from pipeline.checkpoints.reading import load_run_model, read_tensors
from pipeline.initialisation.averaging import average_runs
from tests.conftest import swap_ids_of_two_tokens
from tests.processes import TINY_RUN, losses, run_command, user_error

pytestmark = pytest.mark.slow


def argv(run_dir: Path, shard_folder: Path, *options: str) -> list[str]:
    return [
        "train", *TINY_RUN, "--run_dir", str(run_dir), "--data.path", str(shard_folder), "--model.layout", "sf:sf",
        "--training.precision", "fp32", *options,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, shard_folder: Path) -> Path:
    """Ten steps, saved after 4, 8 and 10; to be read only."""
    folder = tmp_path_factory.mktemp("averaging") / "run"
    run_command("pipeline", *argv(folder, shard_folder, "--optimizer.lr", "0.05"))
    return folder


def weights(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    return read_tensors(run_dir / f"checkpoints/step-{step:08d}", "weights")


def test_the_average_is_the_mean_and_is_read_like_a_run(tmp_path: Path, shard_folder: Path, run_dir: Path) -> None:
    output = tmp_path / "average"
    printed = run_command("pipeline", "average", str(run_dir), "--last", "2", "--output", str(output)).stdout
    assert printed.splitlines()[:2] == [f"step 8 of {run_dir}", f"step 10 of {run_dir}"]
    model, state = load_run_model(output)
    eight, ten = weights(run_dir, 8), weights(run_dir, 10)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, ((eight[name].double() + ten[name].double()) / 2).float()), name
        assert parameter.ndim == 1 or not torch.equal(parameter, ten[name]), name
    assert (state.step, state.rows_consumed) == (10, 160)
    own, theirs = (json.loads((folder / "run.json").read_text()) for folder in (output, run_dir))
    assert own["lineage_id"] == state.lineage_id != theirs["lineage_id"]
    assert [(part["run"], part["step"], part["lineage_id"]) for part in own["averaged_from"]] == [
        ("run", 8, theirs["lineage_id"]), ("run", 10, theirs["lineage_id"]),
    ]  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"average"}

    assert "step 10  validation loss" in run_command("pipeline", "evaluate", str(output)).stdout
    assert "intact" in run_command("pipeline", "checkpoints", str(output)).stdout
    run_command("pipeline", "export", str(output), "--output", str(tmp_path / "model"))
    exported = load_file(tmp_path / "model/model.safetensors")["bert.embeddings.word_embeddings.weight"]
    assert torch.equal(exported, model.embeddings.word_embeddings.weight)
    assert "| average of | step 8 of run, step 10 of run |" in (tmp_path / "model/README.md").read_text()

    child = argv(tmp_path / "child", shard_folder, "--init.from_run", str(output), "--optimizer.lr", "1e-30")
    assert "without moments" in user_error("pipeline", *child, "--init.moments", "true")
    run_command("pipeline", *child, "--training.train_steps", "4")
    for name, parameter in weights(tmp_path / "child", 4).items():
        torch.testing.assert_close(parameter, dict(model.named_parameters())[name], rtol=0, atol=1e-7)
    assert len(losses(tmp_path / "child")) == 4
    line = user_error("pipeline", *argv(output, shard_folder, "--optimizer.lr", "0.05"))
    assert "holds averaged weights" in line


def test_equal_checkpoints_average_to_themselves(tmp_path: Path, run_dir: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    average_runs([f"{run_dir}@4", f"{copy}@4"], tmp_path / "same", None)
    assert all(torch.equal(tensor, weights(run_dir, 4)[name]) for name, tensor in weights(tmp_path / "same", 4).items())
    # The last two up to a step of each of two runs.
    lines = average_runs([f"{run_dir}@8", str(copy)], tmp_path / "four", 2)
    assert [line.split()[1] for line in lines] == ["4", "8", "8", "10"]


def test_what_has_no_average_is_refused_and_leaves_nothing(tmp_path: Path, shard_folder: Path, run_dir: Path) -> None:
    def refusal(*sources: Path | str, last: int | None = None) -> str:
        with pytest.raises(UserError) as caught:
            average_runs([str(source) for source in sources], tmp_path / "average", last)
        assert not [path for path in tmp_path.iterdir() if "average" in path.name]
        return str(caught.value)

    assert "one checkpoint has no average" in refusal(run_dir)
    assert "at least 2" in refusal(run_dir, last=1)
    assert "has 3 intact checkpoints, and 4 are to be averaged" in refusal(run_dir, last=4)
    assert "no checkpoint of step 5" in refusal(f"{run_dir}@5", last=2)
    assert "there is no run" in refusal(tmp_path / "nowhere", run_dir)
    other = tmp_path / "other"
    run_command(
        "pipeline", *argv(other, shard_folder, "--training.train_steps", "1", "--model.ffn_hidden_size", "48"),
        "--model.norm", "rmsnorm",
    )  # fmt: skip
    line = refusal(run_dir, other)
    assert "model.ffn_hidden_size 64 and 48" in line
    assert "model.norm layernorm and rmsnorm" in line

    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    swap_ids_of_two_tokens(copy / "tokenizer.json")
    assert "tokenizer with other ids for 2 of its" in refusal(run_dir, copy)
    damaged = next((copy / "checkpoints/step-00000010").glob("weights-*"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert f"has 2 intact checkpoints ({damaged} has " in refusal(copy, last=3)
