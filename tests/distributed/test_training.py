"""Real training processes over gloo: resume after SIGKILL, parity across topologies."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.mixture import Mixture
from tests.marks import long
from tests.processes import TINY_RUN, kill_group, losses, run_command, start_command, user_error, wait_until


def train(run_dir: Path, shard_folder: Path, processes: int, *options: str) -> dict[int, float]:
    """Train to the end; return the losses by step."""
    run_command(
        "pipeline", "train", *TINY_RUN, "--run_dir", str(run_dir), "--data.path", str(shard_folder),
        "--processes", str(processes), *options,
    )  # fmt: skip
    return losses(run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", long("bf16")])
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


@pytest.mark.long
def test_losses_do_not_depend_on_processes_accumulation_or_zero_stage(
    tmp_path: Path, ragged_shard_folder: Path
) -> None:
    # Ranks and micro-batches hold unequal numbers of masked tokens: only a global mean is the same for all.
    base = ["--training.precision", "fp32", "--model.hidden_dropout", "0", "--model.attention_dropout", "0"]
    one = train(tmp_path / "one", ragged_shard_folder, 1, *base, "--training.micro_batch_size", "16")
    for name, processes, options in [
        ("accumulated", 1, ["--training.micro_batch_size", "4"]),
        ("two", 2, ["--training.micro_batch_size", "4"]),
        ("two-zero2", 2, ["--training.micro_batch_size", "8", "--training.zero_stage", "2"]),
        ("zero0", 2, ["--training.micro_batch_size", "8", "--training.zero_stage", "0"]),
        ("tensor", 2, ["--training.tensor_model_parallel_size", "2", "--training.zero_stage", "3"]),
    ]:
        other = train(tmp_path / name, ragged_shard_folder, processes, *base, *options)
        assert other == pytest.approx(one, abs=2e-5), name
        assert validation_loss(tmp_path / name) == pytest.approx(validation_loss(tmp_path / "one"), abs=2e-5), name
    # From split layers and split weights to one process that reads the checkpoint.
    shown = run_command("pipeline", "evaluate", str(tmp_path / "tensor")).stdout
    assert f"validation loss {validation_loss(tmp_path / 'tensor'):.4f}" in shown


def validation_loss(run_dir: Path) -> float:
    """The last one in the spool."""
    records = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [r["metrics"]["validation/loss"] for r in records if "validation/loss" in r["metrics"]][-1]


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [long("0"), "1"])
def test_steps_without_finite_gradients_are_skipped_counted_and_end_the_run(
    tmp_path: Path, shard_folder: Path, zero_stage: str
) -> None:
    line = user_error(
        "pipeline", "train", *TINY_RUN, "--run_dir", str(tmp_path / "run"), "--data.path", str(shard_folder),
        "--training.precision", "fp32", "--training.zero_stage", zero_stage, "--training.max_skipped_steps", "3",
        # The first update destroys the weights.
        "--optimizer.lr", "1e30", "--optimizer.lr_warmup_fraction", "0", "--training.save_interval", "1",
    )  # fmt: skip
    assert "3 steps in a row up to step 4 were skipped" in line
    saved = json.loads((tmp_path / "run/checkpoints/step-00000003/trainer.json").read_text())
    assert (saved["step"], saved["skipped_steps"], saved["optimizer_steps"]) == (3, 2, 1)
    assert saved["rows_consumed"] == 3 * 16


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


@pytest.mark.long
def test_losses_are_on_disk_before_the_checkpoint_that_skips_them(tmp_path: Path, shard_folder: Path) -> None:
    train(tmp_path / "run", shard_folder, 1, "--training.log_interval", "10", "--training.save_interval", "4")
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    records = [(record["step"], set(record["metrics"])) for record in map(json.loads, lines)]
    for saved in (4, 8, 10):
        begun = [step == saved and "checkpoint/blocking_seconds" in keys for step, keys in records].index(True)
        assert {step for step, keys in records[:begun] if "train/loss" in keys} == set(range(1, saved + 1))


@pytest.mark.long
def test_processes_started_by_srun_join_and_train(tmp_path: Path, shard_folder: Path) -> None:
    # What srun sets for a step of two tasks on this host, and nothing else.
    step = {
        "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_JOB_ID": str(os.getpid()), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    argv = ["train", *TINY_RUN, "--run_dir", str(tmp_path / "run"), "--data.path", str(shard_folder)]
    tasks = [
        start_command("pipeline", *argv, **step, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)) for rank in range(2)
    ]
    for task in tasks:
        _, err = task.communicate(timeout=120)
        assert task.returncode == 0, err
    expected = train(tmp_path / "local", shard_folder, 2)
    assert losses(tmp_path / "run") == expected
    assert (tmp_path / "run/logs/rank-1.log").exists()


@pytest.mark.slow
def test_corrupt_chunk_that_one_rank_reads_ends_all_with_its_name(
    tmp_path: Path, shard_folder: Path, shards: Mixture
) -> None:
    index = shards.folders[0].indexes["train"]
    chunks = {}
    for seed in range(100):  # ranks 0 and 1 read the first two rows: find an order that has them in two chunks
        _, _, (first, second), _ = shards.order(seed, 2).locate(np.arange(2))
        if first != second and second in index.chunks(0):
            chunks[seed] = int(second)
    seed, chunk = next(iter(chunks.items()))
    broken = tmp_path / "shards"
    shutil.copytree(shard_folder, broken)
    content = bytearray((broken / index.name(0)).read_bytes())
    content[sum(index.place(chunk)) - 3] ^= 1
    (broken / index.name(0)).write_bytes(content)
    line = user_error(
        "pipeline", "train", *TINY_RUN, "--run_dir", str(tmp_path / "run"), "--data.path", str(broken),
        "--processes", "2", "--data.seed", str(seed), "--training.global_batch_size", "2",
        "--training.micro_batch_size", "1",
    )  # fmt: skip
    assert index.name(0) in line
    assert f"chunk {chunk}" in line


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
