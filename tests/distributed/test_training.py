"""Real training processes over gloo: resume after SIGKILL, parity across topologies."""

import json
import shutil
from pathlib import Path

import pytest

from tests.processes import TINY_RUN, kill_group, losses, run_command, start_command, wait_until


def train(run_dir: Path, shard_folder: Path, processes: int, *options: str) -> dict[int, float]:
    """Train to the end; return the losses by step."""
    run_command(
        "pipeline", "train", *TINY_RUN, "--run_dir", str(run_dir), "--data.path", str(shard_folder),
        "--processes", str(processes), *options,
    )  # fmt: skip
    return losses(run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resume_after_sigkill_is_equal_to_the_bit(tmp_path: Path, shard_folder: Path, precision: str) -> None:
    # 150 steps so that the kill falls in the middle; dropout on, so that its seeds matter too.
    options = ["--training.precision", precision, "--model.layout", "sf:2sf", "--training.train_steps", "150"]
    whole = train(tmp_path / "whole", shard_folder, 2, *options)
    assert len(whole) == 150

    run_dir = tmp_path / "killed"
    argv = [
        "train", *TINY_RUN, "--run_dir", str(run_dir), "--data.path", str(shard_folder), "--processes", "2",
        *options,
    ]  # fmt: skip
    process = start_command("pipeline", *argv)
    wait_until((run_dir / "checkpoints/latest").exists, process, "the first checkpoint")
    kill_group(process)
    assert not (run_dir / "DONE").exists(), "killed too late to test anything"

    # What was spooled after the checkpoint is computed again: forget it, so that the new values show.
    saved = json.loads(next(iter(sorted(run_dir.glob("checkpoints/step-*/trainer.json"))[-1:])).read_text())["step"]
    spool = run_dir / "metrics.jsonl"
    kept = [line for line in spool.read_text().splitlines(True) if json.loads(line)["step"] <= saved]
    spool.write_text("".join(kept))
    resumed = run_command("pipeline", *argv)
    assert f"resuming from {run_dir}/checkpoints/step-" in resumed.stdout
    assert losses(run_dir) == whole
    again = run_command("pipeline", *argv)
    assert "is finished" in again.stdout


@pytest.mark.slow
def test_losses_do_not_depend_on_processes_accumulation_or_zero_stage(tmp_path: Path, shard_folder: Path) -> None:
    base = ["--training.precision", "fp32", "--model.hidden_dropout", "0", "--model.attention_dropout", "0"]
    one = train(tmp_path / "one", shard_folder, 1, *base, "--training.micro_batch_size", "16")
    for name, processes, options in [
        ("accumulated", 1, ["--training.micro_batch_size", "4"]),
        ("two", 2, ["--training.micro_batch_size", "4"]),
        ("two-zero2", 2, ["--training.micro_batch_size", "8", "--training.zero_stage", "2"]),
    ]:
        other = train(tmp_path / name, shard_folder, processes, *base, *options)
        assert other == pytest.approx(one, abs=2e-5), name


@pytest.mark.slow
def test_resume_on_other_process_count_and_zero_stage(tmp_path: Path, shard_folder: Path) -> None:
    base = ["--training.precision", "fp32", "--model.hidden_dropout", "0", "--model.attention_dropout", "0"]
    whole = train(tmp_path / "whole", shard_folder, 2, *base)
    run_dir = tmp_path / "moved"
    shutil.copytree(tmp_path / "whole", run_dir)
    for newer in ("checkpoints/step-00000008", "checkpoints/step-00000010"):
        shutil.rmtree(run_dir / newer)
    (run_dir / "DONE").unlink()
    (run_dir / "metrics.jsonl").unlink()
    resumed = train(run_dir, shard_folder, 1, *base, "--training.zero_stage", "2")
    assert sorted(resumed) == [5, 6, 7, 8, 9, 10]
    assert resumed == pytest.approx({step: whole[step] for step in resumed}, abs=2e-5)


@pytest.mark.slow
def test_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path, shard_folder: Path) -> None:
    run_dir = tmp_path / "run"
    whole = train(run_dir, shard_folder, 1, "--training.precision", "fp32")
    shutil.rmtree(run_dir / "checkpoints/step-00000010")
    (run_dir / "DONE").unlink()
    (run_dir / "metrics.jsonl").unlink()
    damaged = next((run_dir / "checkpoints/step-00000008").glob("exp_avg-*.safetensors"))
    content = bytearray(damaged.read_bytes())
    content[-5] ^= 1
    damaged.write_bytes(content)
    argv = ["train", *TINY_RUN, "--run_dir", str(run_dir), "--data.path", str(shard_folder)]
    ended = run_command("pipeline", *argv, "--training.precision", "fp32")
    assert f"{damaged} does not match its sha256" in ended.stdout
    assert f"resuming from {run_dir}/checkpoints/step-00000004" in ended.stdout
    assert losses(run_dir) == {step: loss for step, loss in whole.items() if step > 4}
