"""``narrowbert-submit prep`` on a real Slurm: the same bytes as one process makes; what fails goes on alone."""

import hashlib
import shutil
import sys
from pathlib import Path

import pytest

from cluster.__main__ import _dispatch
from cluster.slurm import find_jobs
from cluster.submission import submission_of_run, submission_of_shards
from data_prep.contract.command_line import run_command
from data_prep.contract.shards import open_shards
from pipeline.checkpoints.reading import newest_checkpoint
from tests.cluster.slurm_cluster import SlurmCluster
from tests.conftest import write_corpus
from tests.processes import TINY_RUN, losses
from tests.processes import run_command as run_process

pytestmark = pytest.mark.slow


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.tar"))}


def test_stages_as_jobs_give_the_same_shards(
    slurm: SlurmCluster, tmp_path: Path, shard_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "it's $(touch hacked); #1 %j"
    place.mkdir()
    write_corpus(place / "corpus.jsonl")
    shutil.copy(shard_folder / "tokenizer.json", tmp_path)
    # The last element of the map stage fails the first time: its id is that of the whole array.
    failing = tmp_path / "python"
    failing.write_text(
        f"#!/bin/sh\ncase $* in *'--stage map --part 2 '*) mkdir {tmp_path}/failed 2>/dev/null && exit 1 ;; esac\n"
        f'exec {sys.executable} "$@"\n'
    )
    failing.chmod(0o755)
    (tmp_path / "cluster.yaml").write_text(
        f"python: {failing}\nshared_paths: [/]\nprep: {{array_tasks: 3, max_running: 2, cpus: 1, time_limit: '5'}}\n"
        "environment: [OMP_NUM_THREADS=1]\n"
    )
    options = [
        "--tokenizer", str(tmp_path / "tokenizer.json"), "--corpus.paths", str(place / "corpus.jsonl"),
        "--seq_length", "32", "--mask.variants", "3", "--chunk_rows", "32", "--rows_per_shard", "64",
        "--validation_fraction", "0.2",
    ]  # fmt: skip
    run_process("data_prep", "shards", *options, "--output", str(tmp_path / "alone"), "--num_workers", "1")
    argv = ["prep", *options, "--output", str(place / "shards"), "--cluster", str(tmp_path / "cluster.yaml")]
    assert run_command("narrowbert-submit", _dispatch, argv) == 0
    submission = submission_of_shards(place / "shards")
    jobs = {job.stage: job.job_id for job in submission.jobs()}
    assert list(jobs) == ["plan", "map", "duplicates", "survivors", "pack", "order", "reduce", "finish"], (
        capsys.readouterr().err
    )

    # The same command while they wait or run is refused; a task whose job is lost is done by another one.
    assert run_command("narrowbert-submit", _dispatch, argv) == 2
    assert "is there for" in capsys.readouterr().err
    slurm.wait_for(lambda: slurm.job(jobs["map"])["JobState"] != "PENDING", "the map stage", 60, jobs["map"])
    slurm.client("scancel", jobs["duplicates"])
    slurm.wait_for((tmp_path / "failed").exists, "an element that fails", 60)
    slurm.wait_for(lambda: not submission.active_jobs(), "an end of the jobs", 60, jobs["finish"])
    states = {stage: slurm.job(job_id)["JobState"] for stage, job_id in jobs.items()}
    assert states["map"] == "COMPLETED"
    restarts = {job.job_id.split("_")[1]: job.restarts for job in find_jobs([jobs["map"]])}
    assert restarts == {"0": 0, "1": 0, "2": 1}, "what failed was done again, alone"
    assert set(states.values()) == {"COMPLETED", "CANCELLED"}, states
    assert not (place / "shards").exists()

    assert run_command("narrowbert-submit", _dispatch, argv) == 0
    again = [job.stage for job in submission.jobs()][8:]
    assert again == ["duplicates", "survivors", "pack", "order", "reduce", "finish"], "what was done is not done again"
    last = submission.jobs()[-1].job_id
    slurm.wait_for_state(last, "COMPLETED|FAILED|CANCELLED", 90)
    output = "".join(path.read_text() for path in sorted(submission.logs.glob("*.out")))
    assert "verified" in output, output
    assert digests(place / "shards") == digests(tmp_path / "alone")
    assert open_shards(place / "shards").root_hash == open_shards(tmp_path / "alone").root_hash
    capsys.readouterr()
    assert run_command("narrowbert-submit", _dispatch, ["status", str(place / "shards")]) == 0
    assert "done: the shards are there" in capsys.readouterr().out
    assert run_command("narrowbert-submit", _dispatch, argv) == 0
    assert "is there already" in capsys.readouterr().out
    assert not list(Path.cwd().glob("hacked"))

    # Its last job, lost while it verified, is started again by Slurm.
    finish = ["--config", str(submission.config_file), "--stage", "finish", "--part", "0", "--parts", "3"]
    assert "verified" in run_process("cluster.prep_stage", *finish).stdout


@pytest.mark.long
def test_training_with_a_signal_equals_the_run_by_hand(
    slurm: SlurmCluster, tmp_path: Path, shard_folder: Path, cluster_file: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    store = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    steps = ["--training.train_steps", "60", "--training.save_interval", "20", "--training.precision", "fp32"]
    argv = [*TINY_RUN, *steps, "--data.path", str(shard_folder)]
    run_process("pipeline", "train", *argv, "--run_dir", str(tmp_path / "by-hand"), "--processes", "4")

    run_dir = tmp_path / "run"
    options = ["--run_dir", str(run_dir), "--tracking.enabled", "true", "--cluster", str(cluster_file)]
    assert run_command("narrowbert-submit", _dispatch, ["train", *argv, *options]) == 0
    submission = submission_of_run(run_dir)
    (sent,) = submission.jobs()
    assert (submission.folder / "packages.txt").read_text().count("torch==") == 1
    losses_are_there = run_dir / "metrics.jsonl"
    slurm.wait_for(lambda: losses_are_there.exists() and losses(run_dir), "a first step", 120, sent.job_id)
    slurm.client("scancel", "--signal=USR1", "--batch", sent.job_id)
    job = slurm.wait_for_state(sent.job_id, "COMPLETED|FAILED|CANCELLED", 240)
    output = "".join(path.read_text() for path in sorted(submission.logs.glob("*.out")))
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), output
    assert losses(run_dir) == losses(tmp_path / "by-hand")
    assert "resuming from" in output
    assert newest_checkpoint(run_dir / "checkpoints")[1] == []
    assert (run_dir / "DONE").exists()

    capsys.readouterr()
    assert run_command("narrowbert-submit", _dispatch, ["status", str(run_dir)]) == 0
    shown = capsys.readouterr().out
    assert "COMPLETED" in shown
    assert "60 of 60" in shown
    import mlflow

    (tracked,) = mlflow.MlflowClient(store).search_runs(
        [e.experiment_id for e in mlflow.MlflowClient(store).search_experiments()]
    )
    assert tracked.info.status == "FINISHED"
    history = mlflow.MlflowClient(store).get_metric_history(tracked.info.run_id, "train/loss")
    assert {point.step: point.value for point in history} == losses(run_dir)
