"""A run that goes on under another schedule: as if it had had it from the start, or refused."""

import json
from pathlib import Path

import pytest

from tests.processes import TINY_RUN, losses, run_command, user_error


@pytest.mark.long
def test_a_stable_run_that_is_given_more_steps_is_equal_to_the_bit(tmp_path: Path, shard_folder: Path) -> None:
    common = ["--data.path", str(shard_folder), "--training.precision", "fp32", "--optimizer.lr_warmup_steps", "2"]

    def argv(name: str, steps: int, style: str, fraction: float) -> list[str]:
        return [
            "train", *TINY_RUN, *common, "--run_dir", str(tmp_path / name), "--training.train_steps", str(steps),
            "--optimizer.lr_decay_style", style, "--optimizer.lr_decay_fraction", str(fraction),
        ]  # fmt: skip

    run_command("pipeline", *argv("whole", 12, "sqrt", 0.25))
    run_command("pipeline", *argv("grown", 8, "constant", 1.0))
    assert "is finished" in run_command("pipeline", *argv("grown", 8, "constant", 1.0)).stdout
    shorter = user_error("pipeline", *argv("grown", 6, "constant", 1.0))
    assert "has done 8 steps" in shorter
    too_early = user_error("pipeline", *argv("grown", 12, "linear", 0.5))
    assert "step 8 had the learning rate 0.0005 and would have 0.000416667" in too_early
    grown = run_command("pipeline", *argv("grown", 12, "sqrt", 0.25))
    assert "resuming from" in grown.stdout
    assert losses(tmp_path / "grown") == losses(tmp_path / "whole")
    assert (tmp_path / "grown/DONE").read_text() == "12 steps\n"
    for name in ("weights-00000-of-00001.safetensors", "exp_avg_sq-00000-of-00001.safetensors"):
        ends = [tmp_path / run / "checkpoints/step-00000012" / name for run in ("whole", "grown")]
        assert ends[0].read_bytes() == ends[1].read_bytes()
    changes = [json.loads(line) for line in (tmp_path / "grown/events.jsonl").read_text().splitlines()]
    (change,) = [change["text"] for change in changes if change["kind"] == "schedule changed"]
    assert change == (
        "optimizer.lr_decay_fraction 1.0 -> 0.25, optimizer.lr_decay_style constant -> sqrt, "
        "training.train_steps 8 -> 12"
    )
    # And a schedule that decays from the beginning cannot be stretched.
    decaying = user_error("pipeline", *argv("whole", 14, "sqrt", 0.25))
    assert "only what lies ahead may change" in decaying
