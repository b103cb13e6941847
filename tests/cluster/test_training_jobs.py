"""Training on a real Slurm, through every fault that a cluster has for it; losses are held to undisturbed runs.

A run is two nodes of one or two ranks. Equal losses of every step mean equal rows: each batch of the order once.
"""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from cluster.__main__ import _dispatch
from cluster.status import status
from cluster.submission import submission_of_run
from data_prep.command_line import run_command
from tests.cluster.slurm_cluster import SlurmCluster
from tests.processes import TINY_RUN, losses
from tests.processes import run_command as run_process

pytestmark = pytest.mark.slow

# Long enough that a fault falls in the middle; dropout on, so that its seeds matter too.
STEPS = 4000
LONG = ["--training.train_steps", str(STEPS), "--training.save_interval", "25", "--training.precision", "fp32"]


def send(run_dir: Path, shard_folder: Path, cluster_file: Path, *options: str) -> str:
    """Send a run; the job's id."""
    argv = [
        "train", *TINY_RUN, *LONG, "--run_dir", str(run_dir), "--data.path", str(shard_folder),
        "--cluster", str(cluster_file), *options,
    ]  # fmt: skip
    assert run_command("narrowbert-submit", _dispatch, argv) == 0
    return submission_of_run(run_dir).jobs()[-1].job_id


def output(run_dir: Path) -> str:
    return "".join(path.read_text() for path in sorted(submission_of_run(run_dir).logs.glob("*.out")))


def newest_step(run_dir: Path) -> int:
    """Step of the newest checkpoint; 0 where there is none."""
    latest = run_dir / "checkpoints" / "latest"
    return int(latest.read_text().strip().rsplit("-", 1)[1]) if latest.exists() else 0


def attempts(run_dir: Path) -> int:
    path = run_dir / "run.json"
    return json.loads(path.read_text())["attempt"] if path.exists() else 0


def wait_for_progress(slurm: SlurmCluster, run_dir: Path, job_id: str, attempt: int) -> None:
    """Wait until start number ``attempt`` has saved a checkpoint of its own."""
    slurm.wait_for(lambda: attempts(run_dir) >= attempt, f"start {attempt}", 90, job_id)
    before = newest_step(run_dir)
    slurm.wait_for(lambda: newest_step(run_dir) > before, "a new checkpoint", 90, job_id)


def finish(slurm: SlurmCluster, run_dir: Path, job_id: str) -> dict[str, str]:
    """Wait for the end of a job that must be done; its fields."""
    job = slurm.wait_for_state(job_id, "COMPLETED|FAILED|CANCELLED|TIMEOUT|NODE_FAIL", 240)
    assert job["JobState"] == "COMPLETED", output(run_dir)
    assert (run_dir / "DONE").exists()
    assert "state" in status(run_dir)
    return job
