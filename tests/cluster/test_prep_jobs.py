"""``narrowbert-submit prep`` on a real Slurm: the same bytes as one process makes; what fails goes on alone."""

import hashlib
import shutil
from pathlib import Path

import pytest

from cluster.__main__ import _dispatch
from cluster.submission import submission_of_shards
from data_prep.command_line import run_command
from data_prep.shards import open_shards
from tests.cluster.slurm_cluster import SlurmCluster
from tests.conftest import write_corpus
from tests.processes import run_command as run_process

pytestmark = pytest.mark.slow


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.tar"))}


def test_stages_as_jobs_give_the_same_shards(
    slurm: SlurmCluster, tmp_path: Path, shard_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    shutil.copy(shard_folder / "tokenizer.json", tmp_path)
    (tmp_path / "cluster.yaml").write_text(
        "shared_paths: [/]\nprep: {array_tasks: 3, max_running: 2, cpus: 1, time_limit: '5'}\n"
        "environment: [OMP_NUM_THREADS=1]\n"
    )
    options = [
        "--tokenizer", str(tmp_path / "tokenizer.json"), "--corpus.paths", str(tmp_path / "corpus.jsonl"),
        "--seq_length", "32", "--mask.variants", "3", "--chunk_rows", "32", "--rows_per_shard", "64",
        "--validation_fraction", "0.2",
    ]  # fmt: skip
    run_process("data_prep", "shards", *options, "--output", str(tmp_path / "alone"), "--num_workers", "1")
    argv = ["prep", *options, "--output", str(tmp_path / "shards"), "--cluster", str(tmp_path / "cluster.yaml")]
    assert run_command("narrowbert-submit", _dispatch, argv) == 0
    submission = submission_of_shards(tmp_path / "shards")
    jobs = {job.stage: job.job_id for job in submission.jobs()}
    assert list(jobs) == ["plan", "map", "duplicates", "pack", "order", "reduce", "finish"], capsys.readouterr().err

    # The same command while they wait or run is refused; a task whose job is lost is done by another one.
    assert run_command("narrowbert-submit", _dispatch, argv) == 2
    assert "is there for" in capsys.readouterr().err
    slurm.wait_for(lambda: slurm.job(jobs["map"])["JobState"] != "PENDING", "the map stage", 60, jobs["map"])
    slurm.client("scancel", jobs["duplicates"])
    slurm.wait_for(lambda: not submission.active_jobs(), "an end of the jobs", 60, jobs["finish"])
    states = {stage: slurm.job(job_id)["JobState"] for stage, job_id in jobs.items()}
    assert states["map"] == "COMPLETED"
    assert set(states.values()) == {"COMPLETED", "CANCELLED"}, states
    assert not (tmp_path / "shards").exists()

    assert run_command("narrowbert-submit", _dispatch, argv) == 0
    again = [job.stage for job in submission.jobs()][7:]
    assert again == ["duplicates", "pack", "order", "reduce", "finish"], "what was done is not done again"
    last = submission.jobs()[-1].job_id
    slurm.wait_for_state(last, "COMPLETED|FAILED|CANCELLED", 90)
    output = "".join(path.read_text() for path in sorted(submission.logs.glob("*.out")))
    assert "verified" in output, output
    assert digests(tmp_path / "shards") == digests(tmp_path / "alone")
    assert open_shards(tmp_path / "shards").root_hash == open_shards(tmp_path / "alone").root_hash
    capsys.readouterr()
    assert run_command("narrowbert-submit", _dispatch, ["status", str(tmp_path / "shards")]) == 0
    assert "done: the shards are there" in capsys.readouterr().out
    assert run_command("narrowbert-submit", _dispatch, argv) == 0
    assert "is there already" in capsys.readouterr().out
