"""Hangs, stragglers, gradients that are not finite, leaks."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from pipeline.checkpoints.reading import read_tensors, read_trainer_state
from tests.faults.runs import LONG, argv, events
from tests.marks import long
from tests.processes import Ranks, free_port, kill_group, losses, run_command, run_ranks, start_command, wait_until

LEAK_STEPS = 10_000 if LONG else 1_000


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [0, long(1)])  # rank 0 is the one that writes for both
def test_a_frozen_rank_is_found_named_and_the_run_ended(tmp_path: Path, shard_folder: Path, frozen: int) -> None:
    run_dir = tmp_path / "run"
    command = argv(run_dir, shard_folder, "--training.train_steps", "100000", "--training.hang_timeout", "4")
    launcher = start_command("pipeline", *command, "--processes", "2")
    beats = run_dir / "logs/heartbeats/start-1/node-of-rank-0.json"

    def both_beat() -> bool:
        return beats.exists() and len(json.loads(beats.read_text())) == 2

    wait_until(lambda: (run_dir / "checkpoints/latest").exists() and both_beat(), launcher, "the first checkpoint")
    found = {beat["rank"]: beat["pid"] for beat in json.loads(beats.read_text())}
    os.kill(found[frozen], signal.SIGSTOP)
    stopped = time.monotonic()
    try:
        out, err = launcher.communicate(timeout=60)
    finally:
        if launcher.poll() is None:
            kill_group(launcher)
    assert launcher.returncode == 86, out + err
    assert time.monotonic() - stopped < 30
    (hang,) = events(run_dir, "hang")
    assert f"rank {frozen} (process" in hang["text"]
    assert "does not run any more" in hang["text"]
    # Every rank but the first prints into a log of its own.
    log = run_dir / "logs/rank-1.log"
    assert hang["text"] in (out if frozen else log.read_text())
    assert "train_to_end" in (run_dir / f"logs/stacks-rank-{1 - frozen}.txt").read_text()
    # What hung is no obstacle to the next start.
    stop = {"do": "signal", "place": "in the forward pass", "step": 0, "number": signal.SIGTERM}
    ended = Ranks(1, *command, faults=[stop]).end(85)
    assert "resuming from" in ended[0]


@pytest.mark.long
def test_a_rank_that_stands_still_is_named_with_its_place(tmp_path: Path, shard_folder: Path) -> None:
    run_dir = tmp_path / "run"
    command = argv(run_dir, shard_folder, "--training.train_steps", "1000", "--training.hang_timeout", "3")
    sleeper = {"do": "sleep", "rank": 1, "place": "reading rows", "step": 6, "seconds": 3600}
    printed = Ranks(2, *command, faults=[sleeper]).end(86, -9)
    (hang,) = events(run_dir, "hang")
    assert "rank 1 (process" in hang["text"]
    assert "stands at 'reading rows' after step 6, the others at 'in the backward pass' after step 6" in hang["text"]
    assert hang["text"] in printed[0]
    assert "inject.py" in (run_dir / "logs/stacks-rank-1.txt").read_text()
    assert "train_to_end" in (run_dir / "logs/stacks-rank-0.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("way", [[], long([{"do": "agree_in_rounds"}])], ids=["ring", "rounds"])
def test_a_hang_in_the_agreement_ends_by_the_watchdog_where_torch_would_give_up_as_early(
    tmp_path: Path, shard_folder: Path, way: list[dict[str, str]]
) -> None:
    # As at the defaults, where both are 30 minutes.
    run_dir = tmp_path / "run"
    command = argv(
        run_dir, shard_folder, "--training.train_steps", "1000", "--training.hang_timeout", "4",
        "--training.eval_interval", "6",
    )  # fmt: skip
    faults = [
        {"do": "torch_timeout", "seconds": 4},
        {"do": "sleep", "rank": 1, "place": "reading validation rows", "step": 6, "seconds": 3600},
    ]
    printed = Ranks(2, *command, faults=faults + way).end(86)
    (hang,) = events(run_dir, "hang")
    assert "rank 1 (process" in hang["text"]
    assert (
        "stands at 'reading validation rows' after step 6, the others at 'waiting for the others' after step 6"
        in hang["text"]
    )
    assert "Traceback" not in printed[0]


@pytest.mark.slow
@pytest.mark.parametrize("way", [[], long([{"do": "agree_in_rounds"}])], ids=["ring", "rounds"])
def test_a_rank_lost_in_the_agreement_ends_the_others_with_one_line_to_be_started_again(
    tmp_path: Path, shard_folder: Path, way: list[dict[str, str]]
) -> None:
    command = argv(tmp_path / "run", shard_folder, "--training.train_steps", "1000", "--training.eval_interval", "6")
    killed = {"do": "signal", "rank": 1, "place": "reading validation rows", "step": 6, "number": signal.SIGKILL}
    printed = Ranks(2, *command, faults=[killed, *way]).end(1, -9)
    assert "narrowbert: the ranks lost each other while they agreed on a step" in printed[0]
    assert "run the same command again to resume from the last checkpoint" in printed[0]
    assert "Traceback" not in printed[0]


@pytest.mark.slow
@pytest.mark.parametrize("tensor_parallel_size", [long(1), 2])
def test_every_group_of_a_run_waits_ten_minutes_longer_than_the_watchdog(
    tmp_path: Path, tensor_parallel_size: int
) -> None:
    port = free_port()

    def argv_of_rank(rank: int) -> list[str]:
        return ["-m", "tests.faults.time_limits", str(rank), str(port), str(tmp_path), str(tensor_parallel_size)]

    for printed in run_ranks(2, argv_of_rank):
        limits = json.loads(printed.splitlines()[-1])
        assert len(limits) >= 4, limits  # the default's, the agreement's, DeepSpeed's or Megatron's, the writer's
        assert set(limits.values()) == {7200 + 600}, limits


@pytest.mark.long
def test_poisoned_gradients_and_a_straggler(tmp_path: Path, shard_folder: Path) -> None:
    run_dir = tmp_path / "run"
    # In bf16: there DeepSpeed looks for gradients that are not finite only because it is told to.
    options = ["--training.precision", "bf16", "--training.save_interval", "1"]
    command = argv(run_dir, shard_folder, "--training.train_steps", "12", *options)
    faults = [
        {"do": "poison", "rank": 1, "steps": [3, 4]},
        {"do": "slow", "rank": 1, "seconds": 0.2},
    ]
    printed = Ranks(2, *command, faults=faults).end(0)
    assert "2 steps skipped" in printed[0]
    slow = [event["text"] for event in events(run_dir, "straggler")]
    assert any(text.startswith("rank 1 on ") and text in printed[0] for text in slow), slow
    found = {step: run_dir / f"checkpoints/step-{step:08d}" for step in (3, 5, 6)}
    states = {step: read_trainer_state(folder) for step, folder in found.items()}
    assert (states[5].skipped_steps, states[5].optimizer_steps) == (2, 3)
    for kind in ("weights", "exp_avg", "exp_avg_sq"):
        before, after = read_tensors(found[3], kind), read_tensors(found[5], kind)
        assert all(torch.equal(before[name], after[name]) for name in before), kind
    assert all(tensor.isfinite().all() for tensor in read_tensors(found[6], "exp_avg_sq").values())
    assert all(loss == loss for loss in losses(run_dir).values())


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_memory_stays_flat_over_many_steps_and_epochs(tmp_path: Path, shard_folder: Path) -> None:
    run_dir = tmp_path / "run"
    command = argv(
        run_dir, shard_folder, "--training.train_steps", str(LEAK_STEPS), "--training.log_interval", "20",
        "--training.save_interval", str(LEAK_STEPS // 10), "--training.keep_last", "2",
        "--training.eval_interval", str(LEAK_STEPS // 10), "--training.micro_batch_size", "8",
    )  # fmt: skip
    run_command("pipeline", *command)
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    memory = {r["step"]: r["metrics"][key] for r in records if (key := "system/process_memory_bytes") in r["metrics"]}
    assert max(r["metrics"].get("train/epoch", 0) for r in records) > 3
    quarter = max(value for step, value in memory.items() if step <= LEAK_STEPS // 4)
    last = max(value for step, value in memory.items() if step > LEAK_STEPS * 3 // 4)
    assert last - quarter < 8e6, f"{quarter:,} bytes after a quarter, {last:,} at the end"
