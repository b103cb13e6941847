"""Killed, stopped, taken over, moved to other numbers of ranks: nothing is lost and nothing comes twice."""

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults.runs import LONG, argv, consumed, events, expected_rows
from tests.processes import Ranks, kill_group, losses, run_command, start_command, wait_until

STEPS, KILLS = (1_000, 100) if LONG else (60, 3)
INTERVAL = 10 if LONG else 3


def faults_of_start(number: int, run_dir: Path) -> list[dict[str, Any]]:
    """Of every ten starts, all of which are killed: one is preempted, one meets a slow disk, one a full one."""
    latest = run_dir / "checkpoints/latest"
    save = (int(latest.read_text().removeprefix("step-")) if latest.exists() else 0) + INTERVAL
    return {
        1: [{"do": "stall_write", "rank": 1, "step": save, "seconds": 1.5}],
        2: [{"do": "fail_write", "rank": 0, "steps": [save]}],
        3: [{"do": "signal", "rank": 1, "place": "in the backward pass", "step": 0, "number": signal.SIGTERM}],
    }.get(number % 10, [])


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("size", [2, 4] if LONG else [2])
def test_kills_at_random_moments_then_other_numbers_of_ranks(tmp_path: Path, shard_folder: Path, size: int) -> None:
    options = [
        "--training.save_interval", str(INTERVAL), "--training.eval_interval", "25", "--training.keep_last", "3",
        # Dropout is drawn by each data rank for its rows: on another number of ranks it is another one.
        "--model.hidden_dropout", "0", "--model.attention_dropout", "0",
    ]  # fmt: skip
    steps = ["--training.train_steps", str(2 * STEPS)]
    record = [{"do": "record", "file": str(tmp_path / "rows")}]
    whole = Ranks(size, *argv(tmp_path / "whole", shard_folder, *options, *steps))
    whole.end(0)
    run_dir = tmp_path / "run"
    chance = random.Random(7)
    # However fast the machine is, two seconds between kills are ten steps, so the kills end before the half does.
    paced = [*record, {"do": "slow", "seconds": 0.2}]
    for number in range(KILLS):
        faults = [*paced, *faults_of_start(number, run_dir)]
        ranks = Ranks(size, *argv(run_dir, shard_folder, *options, *steps), faults=faults)
        before = len(events(run_dir, "start")) if (run_dir / "events.jsonl").exists() else 0
        # From the start on, which falls into reading the checkpoint, as well as from the first step on.
        if number % 10 == 3:
            ranks.end(85)
            continue
        if number % 10 in (1, 2) or chance.random() < 0.7:
            wait_until(lambda n=before: (run_dir / "events.jsonl").exists() and len(events(run_dir, "start")) > n,
                       ranks.processes[0], "the start")  # fmt: skip
        if number % 10 == 2:
            wait_until(lambda: bool(events(run_dir, "checkpoint failed")), ranks.processes[0], "the save that fails")
        to_save = 0.25 * INTERVAL if number % 10 == 1 else 0.0
        time.sleep(to_save + chance.uniform(0.0, 2.0))
        if chance.random() < 0.5:  # one rank dies first, the other notices
            ranks.processes[1].kill()
            time.sleep(chance.uniform(0.0, 0.3))
        ranks.kill()
    assert events(run_dir, "checkpoint failed")
    # Asked to stop halfway, then on with four ranks, then one.
    half = [{"do": "signal", "rank": 1, "place": "in the forward pass", "step": STEPS, "number": signal.SIGUSR1}]
    Ranks(size, *argv(run_dir, shard_folder, *options, *steps), faults=record + half).end(85)
    reached = len(losses(run_dir))
    assert STEPS <= reached <= STEPS + 2
    same = {step: loss for step, loss in losses(run_dir).items() if step <= reached}
    assert same == {step: loss for step, loss in losses(tmp_path / "whole").items() if step <= reached}
    late = STEPS * 3 // 2
    third = [{"do": "signal", "rank": 2, "place": "in the forward pass", "step": late, "number": signal.SIGTERM}]
    Ranks(4, *argv(run_dir, shard_folder, *options, *steps), faults=record + third).end(85)
    Ranks(1, *argv(run_dir, shard_folder, *options, *steps), faults=record).end(0)
    assert losses(run_dir) == pytest.approx(losses(tmp_path / "whole"), abs=1e-4)
    assert consumed(tmp_path / "rows") == expected_rows(shard_folder, 2 * STEPS)
    assert not events(run_dir, "not deterministic")
    saved = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert len(saved) == 4, saved  # three checkpoints and `latest`: retention, and nothing half-written


@pytest.mark.long
def test_a_signal_in_any_phase_saves_and_asks_to_be_requeued(tmp_path: Path, shard_folder: Path) -> None:
    run_dir = tmp_path / "run"
    options = ["--training.train_steps", "40", "--training.eval_interval", "10", "--training.save_interval", "7"]
    command = argv(run_dir, shard_folder, *options)
    # While the launcher has hardly started its ranks.
    launcher = start_command("pipeline", *command, "--processes", "2")
    wait_until((run_dir / "logs").exists, launcher, "the launcher")
    launcher.send_signal(signal.SIGTERM)
    out, err = launcher.communicate(timeout=120)
    assert launcher.returncode == 85, out + err
    assert "Traceback" not in out + err
    assert not (run_dir / "checkpoints").exists() or not list((run_dir / "checkpoints").glob("step-*"))
    for place, step, rank, number in [
        ("in the backward pass", 5, 1, signal.SIGTERM),
        ("evaluating", 10, 0, signal.SIGUSR1),
        ("saving", 21, 1, signal.SIGTERM),
    ]:
        fault = {"do": "signal", "rank": rank, "place": place, "step": step, "number": number}
        ranks = Ranks(2, *command, faults=[fault])
        ranks.end(85)
        stop = events(run_dir, "stopped by a signal")[-1]
        assert step <= stop["step"] <= step + 2, (place, stop)  # the others hear of it before the next step
        assert (run_dir / f"checkpoints/step-{stop['step']:08d}/manifest.json").exists()
        assert not (run_dir / "DONE").exists()
    assert "done: 40 steps" in run_command("pipeline", *command, "--processes", "2").stdout
    run_command("pipeline", *argv(tmp_path / "whole", shard_folder, *options), "--processes", "2")
    assert losses(run_dir) == losses(tmp_path / "whole")
    for name in ("run", "whole"):  # the evaluation that a signal cut short was made up for
        text = (tmp_path / name / "metrics.jsonl").read_text()
        assert text.count("validation/loss") == 5, name


@pytest.mark.long
def test_files_that_are_away_for_a_second_end_nothing(tmp_path: Path, shard_folder: Path) -> None:
    run_dir = tmp_path / "run"
    faults = [{"do": "slow", "seconds": 0.05}]
    ranks = Ranks(1, *argv(run_dir, shard_folder, "--training.train_steps", "80"), faults=faults)
    try:
        wait_until((run_dir / "checkpoints/latest").exists, ranks.processes[0], "the first checkpoint")
        for name in ("run.json", "attempts"):  # what a failover of a metadata server looks like
            (run_dir / name).rename(tmp_path / name)
        time.sleep(1)
        for name in ("run.json", "attempts"):
            (tmp_path / name).rename(run_dir / name)
    finally:
        (printed,) = ranks.end(0)
    assert "done: 80 steps" in printed
    assert len(losses(run_dir)) == 80


@pytest.mark.slow
def test_a_start_that_was_taken_over_can_write_nothing(tmp_path: Path, shard_folder: Path) -> None:
    run_dir = tmp_path / "run"
    command = argv(run_dir, shard_folder, "--training.train_steps", "60", "--training.save_interval", "5")
    first = start_command("pipeline", *command)
    wait_until((run_dir / "checkpoints/latest").exists, first, "the first checkpoint")
    first.send_signal(signal.SIGSTOP)  # a node that the scheduler believes to be lost
    try:
        run_command("pipeline", *command)
        after = {path: path.stat().st_mtime_ns for path in (run_dir / "checkpoints").rglob("*")}
        points = (run_dir / "metrics.jsonl").read_bytes()
        first.send_signal(signal.SIGCONT)
        out, err = first.communicate(timeout=60)
    finally:
        if first.poll() is None:
            kill_group(first)
    assert first.returncode == 2, out + err
    assert "a newer start of this run has taken over" in err
    assert "Traceback" not in out + err
    assert {path: path.stat().st_mtime_ns for path in (run_dir / "checkpoints").rglob("*")} == after
    assert (run_dir / "metrics.jsonl").read_bytes() == points
