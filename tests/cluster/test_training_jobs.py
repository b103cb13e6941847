"""Training on a real Slurm, through every fault that a cluster has for it; losses are held to undisturbed runs.

A run is two nodes of one or two ranks. Equal losses of every step mean equal rows: each batch of the order once.
"""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from cluster.__main__ import _dispatch
from cluster.status import status
from cluster.submission import submission_of_run
from data_prep.contract.command_line import run_command
from pipeline.checkpoints.reading import newest_checkpoint
from tests.cluster.slurm_cluster import SlurmCluster
from tests.faults import runs
from tests.processes import losses
from tests.processes import run_command as run_process

pytestmark = pytest.mark.slow

STEPS = 160
LONG = ["--training.train_steps", str(STEPS), "--training.save_interval", "5", "--training.eval_interval", "1000"]


def send(run_dir: Path, shard_folder: Path, cluster_file: Path, *options: str, pace: float = 0.05) -> str:
    """Send a run of ``pace`` seconds a step at least that records its rows beside ``run_dir``; the job's id."""
    paced = run_dir.with_name("python")
    variables = f"NARROWBERT_TEST_ROWS='{rows_of(run_dir)}' PYTHONPATH='{Path(__file__).parents[2]}'"
    variables += f" NARROWBERT_TEST_PACE={pace}"
    paced.write_text(f"#!/bin/sh\n{variables} exec '{sys.executable}' -m tests.cluster.paced \"$@\"\n")
    paced.chmod(0o755)
    argv = [
        *runs.argv(run_dir, shard_folder, *LONG), "--cluster", str(cluster_file), "--cluster.python", str(paced),
        *options,
    ]  # fmt: skip
    assert run_command("narrowbert-submit", _dispatch, argv) == 0
    return submission_of_run(run_dir).jobs()[-1].job_id


def rows_of(run_dir: Path) -> Path:
    return run_dir.with_name("rows")


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

    def has_started() -> bool:
        if slurm.job(job_id)["Reason"] == "launch_failed_requeued_held":
            # This Slurm requeues after 5 s (cred_expire; elsewhere 120), at times before a node has ended the ranks of
            # the start before, and then waits for a person.
            slurm.client("scontrol", "release", job_id)
        return attempts(run_dir) >= attempt

    slurm.wait_for(has_started, f"start {attempt}", 240, job_id)
    before = newest_step(run_dir)
    slurm.wait_for(lambda: newest_step(run_dir) > before, "a new checkpoint", 240, job_id)


def finish(slurm: SlurmCluster, run_dir: Path, job_id: str) -> dict[str, str]:
    """Wait for the end of a job that must be done; its fields."""
    job = slurm.wait_for_state(job_id, "COMPLETED|FAILED|CANCELLED|TIMEOUT|NODE_FAIL", 240)
    assert job["JobState"] == "COMPLETED", output(run_dir)
    assert (run_dir / "DONE").exists()
    assert "state       done" in status(run_dir)
    return job


def check_rows_and_losses(run_dir: Path, shard_folder: Path, undisturbed: dict[int, float]) -> None:
    """Every row once in the order of the data, every loss to the bit, every checkpoint whole."""
    assert runs.consumed(rows_of(run_dir)) == runs.expected_rows(shard_folder, STEPS)
    assert losses(run_dir) == undisturbed
    assert not runs.events(run_dir, "not deterministic")
    folder, problems = newest_checkpoint(run_dir / "checkpoints")
    assert folder is not None
    assert folder.name == f"step-{STEPS:08d}"
    assert not problems


@pytest.fixture(scope="module")
def undisturbed(shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Losses of the run of two ranks that nothing happens to, started by hand."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    run_process(
        "pipeline", *runs.argv(run_dir, shard_folder, *LONG), "--processes", "2",
    )  # fmt: skip
    return losses(run_dir)


@pytest.fixture
def two_ranks(cluster_file: Path) -> Path:
    """A preset of two nodes with a rank each."""
    cluster_file.write_text(cluster_file.read_text().replace("processes_per_node: 2", "processes_per_node: 1"))
    return cluster_file


def rank_on(slurm: SlurmCluster, node: str) -> int:
    """The process of a rank on a node."""
    for pid in slurm.processes(node):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"tests.cluster.paced" in command and b"train" in command:
            return pid
    raise AssertionError(f"no rank on {node}")


def test_one_run_survives_crash_controller_preemption_node_set_down_and_signal(
    slurm: SlurmCluster, tmp_path: Path, shard_folder: Path, two_ranks: Path, undisturbed: dict[int, float]
) -> None:
    run_dir = tmp_path / "run"
    job_id = send(run_dir, shard_folder, two_ranks)

    wait_for_progress(slurm, run_dir, job_id, 1)
    os.kill(rank_on(slurm, "nbnode1"), signal.SIGKILL)
    wait_for_progress(slurm, run_dir, job_id, 2)
    assert slurm.job(job_id)["Restarts"] == "0", "a crash is tried again in the job"

    slurm.kill_controller()
    before = newest_step(run_dir)
    slurm.wait_for(lambda: newest_step(run_dir) > before, "training without the controller", 20)
    slurm.start_controller()
    assert slurm.job(job_id)["JobState"] == "RUNNING"

    slurm.run_urgent_job()
    wait_for_progress(slurm, run_dir, job_id, 3)
    assert slurm.job(job_id)["Restarts"] == "1"

    slurm.client("scontrol", "update", "nodename=nbnode0", "state=down", "reason=test")
    wait_for_progress(slurm, run_dir, job_id, 4)
    restarts = int(slurm.job(job_id)["Restarts"])
    assert restarts >= 2, "requeued by Slurm, once more for each launch that failed"

    slurm.client("scancel", "--signal=USR1", "--batch", job_id)
    wait_for_progress(slurm, run_dir, job_id, 5)
    assert int(slurm.job(job_id)["Restarts"]) > restarts

    finish(slurm, run_dir, job_id)
    check_rows_and_losses(run_dir, shard_folder, undisturbed)
    assert attempts(run_dir) == 5


@pytest.mark.long
def test_time_limit_of_a_training(
    slurm: SlurmCluster, tmp_path: Path, shard_folder: Path, two_ranks: Path, undisturbed: dict[int, float]
) -> None:
    run_dir = tmp_path / "run"
    job_id = send(run_dir, shard_folder, two_ranks, "--cluster.time_limit", "1", pace=0.4)
    slurm.wait_for(lambda: slurm.job(job_id)["Restarts"] == "1", "the signal before the time limit", 120, job_id)
    slurm.client("scontrol", "update", f"jobid={job_id}", "timelimit=10")
    finish(slurm, run_dir, job_id)
    check_rows_and_losses(run_dir, shard_folder, undisturbed)
    assert attempts(run_dir) == 2
    assert "TIME LIMIT" not in output(run_dir)


@pytest.mark.long
def test_node_that_loses_its_power(
    slurm: SlurmCluster, tmp_path: Path, shard_folder: Path, two_ranks: Path, undisturbed: dict[int, float]
) -> None:
    run_dir = tmp_path / "run"
    job_id = send(run_dir, shard_folder, two_ranks)
    wait_for_progress(slurm, run_dir, job_id, 1)
    slurm.kill_node("nbnode1", with_tasks=True)
    try:
        wait_for_progress(slurm, run_dir, job_id, 2)
        assert "nbnode1" not in slurm.job(job_id)["NodeList"]
        finish(slurm, run_dir, job_id)
    finally:
        slurm.start_node("nbnode1")
    check_rows_and_losses(run_dir, shard_folder, undisturbed)


@pytest.mark.long
def test_ranks_left_running_on_a_lost_node_write_nothing(
    slurm: SlurmCluster, tmp_path: Path, shard_folder: Path, two_ranks: Path, undisturbed: dict[int, float]
) -> None:
    run_dir = tmp_path / "run"
    job_id = send(
        run_dir, shard_folder, two_ranks, "--cluster.nodes", "1", "--cluster.processes_per_node", "2",
    )  # fmt: skip
    wait_for_progress(slurm, run_dir, job_id, 1)
    node = slurm.job(job_id)["NodeList"]
    left = rank_on(slurm, node)
    os.kill(left, signal.SIGSTOP)  # cut off as well: it comes back when another start has taken over
    slurm.kill_node(node, with_tasks=False)
    try:
        wait_for_progress(slurm, run_dir, job_id, 2)
        assert slurm.job(job_id)["NodeList"] != node
        committed = newest_step(run_dir)
        os.kill(left, signal.SIGCONT)
        finish(slurm, run_dir, job_id)
        slurm.wait_for(lambda: not Path(f"/proc/{left}/exe").exists(), "an end of the rank left behind", 60)
        # Its batch script may be in its pause of 30 seconds before it asks its nodes again.
        taken_over = "a newer start of this run has taken over"
        slurm.wait_for(lambda: taken_over in output(run_dir), "word of the start left behind", 60)
    finally:
        slurm.start_node(node)
    assert committed < newest_step(run_dir) == STEPS
    check_rows_and_losses(run_dir, shard_folder, undisturbed)
    assert attempts(run_dir) == 2, "what is left of the first start starts nothing"
    assert json.loads((run_dir / f"checkpoints/step-{STEPS:08d}/trainer.json").read_text())["attempt"] == 2
