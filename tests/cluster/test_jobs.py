"""What the batch script does with ranks that end in every way, on a real Slurm. The ranks are stand-ins."""

import json
import re
import sys
from pathlib import Path

import pytest

from cluster.batch import train_script
from cluster.config import ClusterConfig, check_cluster
from cluster.slurm import submission_environment, submit
from cluster.status import cancel, logs, status
from cluster.submission import Submission, submission_of_run
from tests.cluster.slurm_cluster import SlurmCluster

pytestmark = pytest.mark.slow


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A Python that runs the stand-in whatever it is told to run."""
    path = tmp_path / "stand in"
    path.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{Path(__file__).with_name('stand_in.py')}' \"$@\"\n")
    path.chmod(0o755)
    return path


def send(run_dir: Path, stand_in: Path, acts: str, **changes: object) -> tuple[str, Submission]:
    """Send a job of two nodes with two ranks whose starts do ``acts``, one word a start."""
    values = {
        "nodes": 2, "processes_per_node": 2, "time_limit": "5", "signal_lead_seconds": 10, "python": str(stand_in),
    }  # fmt: skip
    config = ClusterConfig(**(values | changes))  # type: ignore[arg-type]
    check_cluster(config)
    submission = submission_of_run(run_dir)
    run_dir.mkdir()
    (run_dir / "acts").write_text(acts)
    arguments = ["--config", str(submission.config_file)]
    submission.write(
        train_script(config, run_dir=run_dir, work_dir=run_dir.parent, arguments=arguments, job_name="test"), {}
    )
    job_id = submit(submission.script, submission_environment([]))
    submission.add_job(job_id)
    return job_id, submission


def seen(run_dir: Path, start: int) -> list[dict[str, str]]:
    """What each rank of a start saw."""
    return [json.loads((run_dir / f"seen/{start}-{rank}.json").read_text()) for rank in range(4)]


def wait_for_start(slurm: SlurmCluster, run_dir: Path, start: int, job_id: str) -> None:
    """Wait until every rank of a start minds signals."""
    ranks = [run_dir / f"seen/{start}-{rank}.json" for rank in range(4)]
    slurm.wait_for(lambda: all(path.exists() for path in ranks), f"start {start}", 40, job_id)


def output(submission: Submission) -> str:
    return "".join(path.read_text() for path in sorted(submission.logs.glob("*.out")))


def test_names_and_values_arrive_as_they_were_given(
    slurm: SlurmCluster, stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "7")  # of the one who sends
    value = 'it\'s "$(touch hacked)" `touch hacked`; touch hacked %j'
    run_dir = tmp_path / 'it\'s "a" $(touch hacked); #run %j'
    job_id, submission = send(run_dir, stand_in, "done", environment=(f"ODD_VALUE={value}",))
    job = slurm.wait_for_state(job_id, "COMPLETED|FAILED|CANCELLED", 30)
    assert job["JobState"] == "COMPLETED", output(submission)
    ranks = seen(run_dir, 0)
    assert {rank["ODD_VALUE"] for rank in ranks} == {value}
    assert {rank["folder"] for rank in ranks} == {str(tmp_path)}
    assert {rank["argv"][-1] for rank in ranks} == {str(submission.config_file)}
    assert {rank["RANK"] for rank in ranks} == {None}
    # Ranks are numbered node by node, and all meet on the first node.
    assert [rank["SLURM_LOCALID"] for rank in ranks] == ["0", "1", "0", "1"]
    assert {rank["MASTER_ADDR"] for rank in ranks} == {ranks[0]["SLURMD_NODENAME"]}
    assert (submission.logs / f"job-{job_id}.out").exists()
    assert not list(tmp_path.rglob("hacked"))
    assert not [path for path in Path.cwd().iterdir() if path.name == "hacked"]


def test_crash_is_tried_again_in_the_job_until_it_is_hopeless(
    slurm: SlurmCluster, stand_in: Path, tmp_path: Path
) -> None:
    job_id, submission = send(tmp_path / "run", stand_in, "crash nothing done")
    hopeless, its = send(tmp_path / "hopeless", stand_in, "crash nothing crash", max_crashes=2)
    job = slurm.wait_for_state(job_id, "COMPLETED|FAILED", 40)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "0"), output(submission)
    ports = [{rank["MASTER_PORT"] for rank in seen(tmp_path / "run", start)} for start in range(3)]
    assert all(len(port) == 1 for port in ports)
    assert len(set.union(*ports)) == 3, "every start has a port of its own"
    assert "2: start 0 does crash" in output(submission), "lines have the number of their rank"
    job = slurm.wait_for_state(hopeless, "COMPLETED|FAILED", 40)
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "1:0")
    assert "2 crashes in a row" in output(its)
    assert not (tmp_path / "hopeless/seen/2-0.json").exists()


def test_mistake_of_one_rank_ends_the_job(slurm: SlurmCluster, stand_in: Path, tmp_path: Path) -> None:
    job_id, submission = send(tmp_path / "run", stand_in, "mistake done")
    job = slurm.wait_for_state(job_id, "COMPLETED|FAILED", 30)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "2:0", "0"), output(submission)
    assert not (tmp_path / "run/seen/1-0.json").exists()


def test_once_there_is_a_checkpoint_a_mistake_is_a_crash(slurm: SlurmCluster, stand_in: Path, tmp_path: Path) -> None:
    # A node that has lost its disk looks like that. The site's script leaves options of the shell behind.
    (tmp_path / "setup.sh").write_text("set -eEuo pipefail\ntrap 'exit 7' ERR\n")
    job_id, submission = send(tmp_path / "run", stand_in, "save mistake done", setup_script=str(tmp_path / "setup.sh"))
    job = slurm.wait_for_state(job_id, "COMPLETED|FAILED", 60)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "0"), output(submission)


def test_signal_leads_to_a_checkpoint_and_back_to_the_queue(
    slurm: SlurmCluster, stand_in: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    job_id, submission = send(run_dir, stand_in, "wait wait done", max_requeues=2)
    for start in range(2):
        wait_for_start(slurm, run_dir, start, job_id)
        assert "RUNNING" in status(run_dir)
        slurm.client("scancel", "--signal=USR1", "--batch", job_id)
    job = slurm.wait_for_state(job_id, "COMPLETED|FAILED", 40)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "2"), output(submission)
    # Slow ranks are not killed when the first has ended.
    assert "Terminating StepId" not in output(submission)
    assert len(list(run_dir.glob("saved-*"))) == 8
    assert {rank["SLURM_JOB_ID"] for start in range(3) for rank in seen(run_dir, start)} == {job_id}
    assert "2 restarts" in status(run_dir)
    printed: list[str] = []
    logs(run_dir, lines=1000, follow=True, write=printed.append)
    assert "3: start 1 does wait" in printed


def test_time_limit_is_told_in_time(slurm: SlurmCluster, stand_in: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job_id, submission = send(run_dir, stand_in, "wait done", time_limit="1", signal_lead_seconds=10)
    job = slurm.wait_for_state(job_id, "COMPLETED|FAILED|TIMEOUT|CANCELLED", 120)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), output(submission)
    assert len(list(run_dir.glob("saved-0-*"))) == 4
    assert "TIME LIMIT" not in output(submission)


def test_requeues_are_limited(slurm: SlurmCluster, stand_in: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job_id, submission = send(run_dir, stand_in, "wait done", max_requeues=0)
    wait_for_start(slurm, run_dir, 0, job_id)
    slurm.client("scancel", "--signal=USR1", "--batch", job_id)
    job = slurm.wait_for_state(job_id, "COMPLETED|FAILED", 30)
    assert (job["JobState"], job["Restarts"]) == ("FAILED", "0")
    assert "not done after 0 times" in output(submission)


def test_successor_goes_on_where_jobs_are_cancelled(slurm: SlurmCluster, stand_in: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    first, submission = send(run_dir, stand_in, "wait wait done", continue_by="resubmit", partition="harsh")
    wait_for_start(slurm, run_dir, 0, first)
    slurm.run_urgent_job()
    assert slurm.job(first)["JobState"] == "PREEMPTED"
    wait_for_start(slurm, run_dir, 1, first)
    second = submission.jobs()[1].job_id
    assert slurm.job(second)["Restarts"] == "0"
    slurm.client("scancel", "--signal=USR1", "--batch", second)
    slurm.wait_for((run_dir / "DONE").exists, "the end", 40, second)
    slurm.wait_for(lambda: not submission.active_jobs(), "an end without successors", 30)
    ids = [job.job_id for job in submission.jobs()]
    states = [slurm.job(job_id)["JobState"] for job_id in ids]
    assert states == ["PREEMPTED", "COMPLETED", "COMPLETED", "CANCELLED"], output(submission)


def test_cancel_saves_and_nothing_goes_on(slurm: SlurmCluster, stand_in: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job_id, submission = send(run_dir, stand_in, "wait done")
    wait_for_start(slurm, run_dir, 0, job_id)
    assert "saves a checkpoint and ends" in cancel(run_dir, now=False)
    job = slurm.wait_for_state(job_id, "COMPLETED|FAILED|CANCELLED", 30)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "0"), output(submission)
    assert len(list(run_dir.glob("saved-*"))) == 4
    assert "nothing goes on by itself" in status(run_dir)
    assert cancel(run_dir, now=True) == f"no job of {run_dir} waits or runs"
    assert Path(submission.script).exists()


def test_resubmitted_job_that_slurm_requeues_goes_on_and_keeps_a_successor(
    slurm: SlurmCluster, stand_in: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    job_id, submission = send(run_dir, stand_in, "wait wait done", continue_by="resubmit")
    wait_for_start(slurm, run_dir, 0, job_id)
    slurm.client("scontrol", "requeue", job_id)  # by an administrator, which is no scancel
    wait_for_start(slurm, run_dir, 1, job_id)
    assert slurm.job(job_id)["Restarts"] == "1", output(submission)
    slurm.client("scancel", submission.jobs()[-1].job_id)  # somebody takes it for a second copy
    slurm.client("scancel", "--signal=USR1", "--batch", job_id)
    slurm.wait_for((run_dir / "DONE").exists, "the end", 60, job_id)
    slurm.wait_for(lambda: not submission.active_jobs(), "an end without successors", 30)


@pytest.mark.parametrize("continue_by", ["requeue", "resubmit"])
def test_scancel_means_what_it_says(slurm: SlurmCluster, stand_in: Path, tmp_path: Path, continue_by: str) -> None:
    run_dir = tmp_path / "run"
    job_id, submission = send(run_dir, stand_in, "wait done", continue_by=continue_by)
    wait_for_start(slurm, run_dir, 0, job_id)
    slurm.client("scancel", job_id)
    slurm.wait_for(lambda: not submission.active_jobs(), "an end", 30)
    assert slurm.job(job_id)["JobState"] == "CANCELLED", output(submission)
    assert not (run_dir / "DONE").exists()
    assert "cancelled; narrowbert-submit train" in output(submission)


def test_status_of_jobs_that_the_controller_has_forgotten(
    slurm_with_accounts: SlurmCluster, stand_in: Path, tmp_path: Path
) -> None:
    slurm, run_dir = slurm_with_accounts, tmp_path / "run"
    job_id, submission = send(run_dir, stand_in, "done")
    slurm.wait_for_state(job_id, "COMPLETED|FAILED", 30)
    mistaken, _ = send(tmp_path / "mistaken", stand_in, "mistake")
    slurm.wait_for_state(mistaken, "COMPLETED|FAILED", 30)
    ask = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=State,Timelimit,NodeList"]
    accounts = ["COMPLETED|00:05:00|nbnode[0-1]", "FAILED|00:05:00|nbnode[0-1]"]
    slurm.wait_for(lambda: slurm.client(*ask).split() == accounts, "accounts of both", 60)
    slurm.forget_jobs()
    assert slurm.client("scontrol", "show", "job", job_id, check=False) == ""
    assert re.search(
        rf"job {job_id} +COMPLETED, on nbnode\[0-1\], 00:00:\d\d of 00:05:00, exit code 0:0", status(run_dir)
    )
    assert re.search(rf"job {mistaken} +FAILED, .*, exit code 2:0", status(tmp_path / "mistaken"))
    assert not submission.active_jobs()


@pytest.mark.usefixtures("slurm")
def test_status_without_accounts_of_a_job_that_is_forgotten(tmp_path: Path) -> None:
    submission = submission_of_run(tmp_path / "run")
    submission.write("", {})
    submission.add_job("999999")
    assert "job 999999  ended; Slurm keeps no record of it any more" in status(tmp_path / "run")
