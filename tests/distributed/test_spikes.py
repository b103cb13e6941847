"""Runs that skip steps whose loss or gradient norm stands out."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.faults.runs import events
from tests.marks import long
from tests.processes import TINY_RUN, Ranks, losses

SPIKES = [135, 141]
COMMON = ["--training.train_steps", "146", "--training.save_interval", "146", "--training.eval_interval", "1000",
          "--optimizer.lr_decay_style", "constant"]  # fmt: skip

pytestmark = pytest.mark.slow


def run(run_dir: Path, shard_folder: Path, size: int, sigma: str, faults: list[dict[str, Any]], *options: str) -> None:
    argv = ["train", *TINY_RUN, *COMMON, "--run_dir", str(run_dir), "--data.path", str(shard_folder)]
    code = 85 if any(fault["do"] == "signal" for fault in faults) else 0
    Ranks(size, *argv, "--training.spike_sigma", sigma, *options, faults=faults).end(code)


def state(run_dir: Path) -> dict[str, Any]:
    return json.loads(max(run_dir.glob("checkpoints/step-*/trainer.json")).read_text())


@pytest.mark.parametrize(("precision", "stage", "size"), [long("fp32", "0", 2), long("bf16", "2", 2), ("fp32", "3", 1)])
def test_a_spike_is_skipped_like_gradients_that_are_not_finite(
    tmp_path: Path, shard_folder: Path, precision: str, stage: str, size: int
) -> None:
    options = ["--training.precision", precision, "--training.zero_stage", stage]
    spikes, poisoned = tmp_path / "spikes", tmp_path / "poisoned"
    run(spikes, shard_folder, size, "6", [{"do": "amplify", "steps": SPIKES}], *options)
    run(poisoned, shard_folder, size, "0", [{"do": "poison", "steps": SPIKES}], *options)
    assert [event["step"] for event in events(spikes, "spike")] == [step + 1 for step in SPIKES]
    assert all("loss" in event["text"] and "gradient norm" in event["text"] for event in events(spikes, "spike"))
    saved = state(spikes)
    assert (saved["step"], saved["skipped_steps"], saved["optimizer_steps"]) == (146, 2, 144)
    assert len(saved["spikes"]["steps"]) == 128
    assert state(poisoned)["spikes"] is None
    # Nothing but the spikes themselves differs: the weights after them are the same to the bit.
    ours, theirs = losses(spikes), losses(poisoned)
    assert {step for step in ours if ours[step] != theirs[step]} == {step + 1 for step in SPIKES}


@pytest.mark.long
def test_a_resume_decides_alike(tmp_path: Path, shard_folder: Path) -> None:
    fault = {"do": "amplify", "steps": SPIKES}
    options = ["--training.precision", "fp32", "--training.zero_stage", "1"]
    run(tmp_path / "whole", shard_folder, 2, "6", [fault], *options)
    stop = {"do": "signal", "rank": 0, "place": "in the forward pass", "step": 138, "number": 15}
    run(tmp_path / "resumed", shard_folder, 2, "6", [fault, stop], *options)
    assert 138 <= state(tmp_path / "resumed")["step"] <= 140
    run(tmp_path / "resumed", shard_folder, 2, "6", [fault], *options)
    assert [event["step"] for event in events(tmp_path / "resumed", "spike")] == [136, 142]
    assert losses(tmp_path / "resumed") == losses(tmp_path / "whole")
    assert state(tmp_path / "resumed")["spikes"] == state(tmp_path / "whole")["spikes"]


@pytest.mark.long
def test_too_many_spikes_in_a_row_end_the_run(tmp_path: Path, shard_folder: Path) -> None:
    argv = [
        "train", *TINY_RUN, *COMMON, "--run_dir", str(tmp_path / "run"), "--data.path", str(shard_folder),
        "--training.precision", "fp32", "--training.spike_sigma", "6", "--training.max_skipped_steps", "4",
    ]  # fmt: skip
    (printed,) = Ranks(1, *argv, faults=[{"do": "amplify", "steps": list(range(135, 146))}]).end(2)
    assert "4 steps in a row up to step 139 were skipped, their gradients are not finite or they are spikes" in printed
