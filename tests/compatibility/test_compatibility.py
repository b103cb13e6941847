"""What an earlier commit made still works: its shards, a run cut off after step 20, its export, and its losses.

``make.py`` made ``artifacts/`` with commit 28863e1, the last one before modules were moved into rooms.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.compatibility.make import SAME_BITS, SAVED_STEP, STEPS, TRAINING, logits, losses

ARTIFACTS = Path(__file__).parent / "artifacts"
RECORDS = json.loads((ARTIFACTS / "records.json").read_text())
EXPECTED = {int(step): loss for step, loss in RECORDS["losses"].items()}
IS_SAME_TORCH = torch.__version__ == RECORDS["torch"]
TOLERANCE = 1e-6 if IS_SAME_TORCH else 1e-3
"""Since that commit the gradients of the frozen state are summed in another order: a few last bits differ. Another
torch may sum otherwise too: then losses are compared to 0.1%, far below what a wrong step changes."""


def run(package: str, *argv: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-m", package, *argv],
        check=False, env={**os.environ, **SAME_BITS}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def train(run_dir: Path) -> dict[int, float]:
    run("pipeline", "train", *TRAINING, "--data.path", str(ARTIFACTS / "shards"), "--run_dir", str(run_dir))
    return {int(step): loss for step, loss in losses(run_dir).items()}


def assert_same_losses(actual: dict[int, float], expected: dict[int, float]) -> None:
    assert actual.keys() == expected.keys()
    wrong = {s: (actual[s], expected[s]) for s in actual if not math.isclose(actual[s], expected[s], rel_tol=TOLERANCE)}
    assert not wrong


def test_losses_of_the_golden_curve_are_those_of_the_earlier_commit(tmp_path: Path) -> None:
    assert len(EXPECTED) == STEPS
    assert EXPECTED[STEPS] < EXPECTED[1] - 0.3, "a curve that does not fall proves little"
    # What a start leaves that is ended before its first step: the run keeps the order of rows of that commit.
    (tmp_path / "run").mkdir()
    shutil.copy(ARTIFACTS / "run/run.json", tmp_path / "run")
    assert_same_losses(train(tmp_path / "run"), EXPECTED)


def test_shards_verify() -> None:
    run("data_prep", "verify", str(ARTIFACTS / "shards"))


@pytest.mark.slow
def test_run_resumes_with_the_same_losses_and_exports_the_same_weights(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(ARTIFACTS / "run", run_dir)
    resumed = train(run_dir)
    assert_same_losses({s: x for s, x in resumed.items() if s > SAVED_STEP}, {s: EXPECTED[s] for s in range(21, 31)})
    log = (run_dir / "logs" / "rank-0.log").read_text()
    assert f"(step {SAVED_STEP} of {STEPS})" in log, "it resumed, and did not start from the beginning"
    run("pipeline", "export", str(run_dir), "--output", str(tmp_path / "model"))
    if IS_SAME_TORCH:
        now, then = (load_file(folder / "model.safetensors") for folder in (tmp_path / "model", ARTIFACTS / "export"))
        assert now.keys() == then.keys()
        for name, weight in then.items():
            torch.testing.assert_close(now[name], weight, rtol=0.0, atol=2e-5, msg=name)


@pytest.mark.long
def test_a_run_of_that_commit_can_be_started_from(tmp_path: Path) -> None:
    going_on = ["--init.from_run", str(ARTIFACTS / "run"), "--init.moments", "true", "--training.train_steps", "2"]
    data = ["--data.path", str(ARTIFACTS / "shards"), "--run_dir", str(tmp_path / "child")]
    said = run("pipeline", "train", *TRAINING, *data, *going_on)
    assert f"starting from weights and moments of step {SAVED_STEP}" in said
    assert "rows: the parent has an earlier version's order: the order begins at row 0" in said
    assert losses(tmp_path / "child")["1"] < EXPECTED[1] - 0.3


@pytest.mark.parametrize("register", ["", "import pipeline.export"], ids=["own code", "registered classes"])
def test_export_loads(register: str) -> None:
    torch.testing.assert_close(
        torch.tensor(logits(ARTIFACTS / "export", register)),
        torch.tensor(RECORDS["logits"]),
        rtol=0,
        atol=1e-5,
    )
