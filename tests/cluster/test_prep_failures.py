"""Elements of a preparation on a real Slurm whose tasks crash, are killed, run out of time or are requeued."""

import functools
import json
import shutil
import sys
import threading
from collections.abc import Mapping
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.__main__ import _dispatch
from cluster.slurm import find_jobs
from cluster.submission import Submission, submission_of_shards
from data_prep.__main__ import main as prepare
from data_prep.contract.command_line import UserError, run_command
from data_prep.contract.shards import open_shards
from data_prep.report.log_progress import LogProgress
from data_prep.stages.records import STAGES
from data_prep.stages.work_folder import locked_work_folder
from tests.cluster.faulty_prep import python_with_faults
from tests.cluster.slurm_cluster import SlurmCluster
from tests.conftest import write_corpus
from tests.processes import run_command as run_process

pytestmark = pytest.mark.slow

PARTITION_BYTES = 5_000  # less than each of the six files below: six map tasks


def send_faulty(
    tmp_path: Path, shard_folder: Path, monkeypatch: pytest.MonkeyPatch, faults: Mapping[str, Any], **prep: object
) -> Submission:
    """Send a preparation of six map tasks in two elements, with what ``faulty_prep`` does to them."""
    monkeypatch.setattr("data_prep.corpus.partitions.MIN_PARTITION_BYTES", PARTITION_BYTES)
    (tmp_path / "corpus").mkdir()
    for number in range(6):
        write_corpus(tmp_path / f"corpus/{number}.jsonl", 20, first=20 * number)
    shutil.copy(shard_folder / "tokenizer.json", tmp_path)
    write_python(tmp_path, faults)
    asked = {"array_tasks": 2, "max_running": 2, "cpus": 1, "time_limit": "5"} | prep
    cluster = {"python": str(tmp_path / "python"), "shared_paths": ["/"], "max_crashes": 2, "prep": asked}
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(cluster))
    return give_the_command(tmp_path)


def write_python(tmp_path: Path, faults: Mapping[str, Any]) -> None:
    python_with_faults(tmp_path / "python", sys.executable, {"partition_bytes": PARTITION_BYTES, **faults})


def options_of(tmp_path: Path) -> list[str]:
    return [
        "--tokenizer", str(tmp_path / "tokenizer.json"), "--corpus.paths", str(tmp_path / "corpus"),
        "--seq_length", "32", "--mask.variants", "3", "--chunk_rows", "32", "--rows_per_shard", "64",
        "--validation_fraction", "0.2",
    ]  # fmt: skip


def give_the_command(tmp_path: Path) -> Submission:
    argv = [
        "prep",
        *options_of(tmp_path),
        "--output",
        str(tmp_path / "shards"),
        "--cluster",
        str(tmp_path / "cluster.yaml"),
    ]
    assert run_command("narrowbert-submit", _dispatch, argv) == 0
    return submission_of_shards(tmp_path / "shards")


def output(submission: Submission) -> str:
    return "".join(path.read_text() for path in sorted(submission.logs.glob("*.out")))


def test_an_element_uses_all_its_cores(
    slurm: SlurmCluster, tmp_path: Path, shard_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "workers").mkdir()
    faults = {"meet": str(tmp_path / "workers"), "record": str(tmp_path / "tasks")}
    submission = send_faulty(tmp_path, shard_folder, monkeypatch, faults, cpus=2)
    map_job = next(job.job_id for job in submission.jobs() if job.stage == "map")
    ended = slurm.wait_for_state(map_job, "COMPLETED|FAILED|CANCELLED", 180)
    assert ended["JobState"] == "COMPLETED", output(submission)
    slurm.wait_for(lambda: len((tmp_path / "tasks").read_text().splitlines()) >= 6, "six tasks", 60)
    ran = [json.loads(line) for line in (tmp_path / "tasks").read_text().splitlines()]
    tasks = {task["index"]: task for task in ran if task["stage"] == "map"}
    assert sorted(tasks) == [0, 1, 2, 3, 4, 5]
    for block in ([0, 1, 2], [3, 4, 5]):
        together = [task for index in block if (task := tasks[index])]
        assert len({task["pid"] for task in together}) == 2, together
        first, second = sorted(together, key=lambda task: task["begin"])[:2]
        assert second["begin"] < first["end"], "both cores are at work at one time"


def job_of(submission: Submission, stage: str) -> str:
    """Id of the newest job of a stage."""
    return [job.job_id for job in submission.jobs() if job.stage == stage][-1]


def finished_tasks(tmp_path: Path) -> list[str]:
    lines = (tmp_path / "tasks").read_text().splitlines()
    return sorted(f"{task['stage']}-{task['index']}" for task in map(json.loads, lines))


def restarts_of(submission: Submission, stage: str) -> list[int | None]:
    return [job.restarts for job in sorted(find_jobs([job_of(submission, stage)]), key=lambda job: job.job_id)]


def test_a_poisoned_task_fails_alone_and_is_named(
    slurm: SlurmCluster, tmp_path: Path, shard_folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    record = {"record": str(tmp_path / "tasks")}
    poison = {"map-1": "raise", "map-3": "kill", "map-5": "refuse"}  # each in an element of its own
    faults = record | {"poison": poison}
    submission = send_faulty(
        tmp_path, shard_folder, monkeypatch, faults, array_tasks=4, time_limits=["map=7", "finish=1:00:00"]
    )
    slurm.wait_for(lambda: not submission.active_jobs(), "an end of the jobs", 90, job_of(submission, "map"))
    assert finished_tasks(tmp_path) == ["map-0", "map-2", "map-4"], output(submission)
    assert restarts_of(submission, "map") == [1, 1, 0, 0], "a crash is tried twice (max_crashes), a mistake once"
    states = [slurm.job(job_of(submission, stage))["JobState"] for stage in ("map", "duplicates", "finish")]
    assert states == ["FAILED", "CANCELLED", "CANCELLED"]
    limits = [slurm.job(job_of(submission, stage))["TimeLimit"] for stage in ("plan", "map", "finish")]
    assert limits == ["00:05:00", "00:07:00", "01:00:00"]

    capsys.readouterr()
    assert run_command("narrowbert-submit", _dispatch, ["status", str(tmp_path / "shards")]) == 0
    shown = capsys.readouterr().out
    assert "map task 1: OverflowError: a poisoned document\n" in shown
    assert "map, part 0 of 4: failed with exit code 1, 2 times with no task done between (cluster.max_crashes)" in shown
    assert "map task 3: its process was killed" in shown
    assert "give more memory (cluster.prep.memory) or fewer cores (cluster.prep.cpus)" in shown
    assert "map task 5: cannot read the corpus file https://***@example.invalid/a.jsonl\n" in shown
    assert "to go on  " in shown
    assert "in _run_task" in output(submission), "the traceback is in the log"
    assert "hidden" not in shown + output(submission)

    write_python(tmp_path, record)
    give_the_command(tmp_path)
    slurm.wait_for_state(job_of(submission, "map"), "COMPLETED|FAILED|CANCELLED", 60)
    elements = sorted(job.job_id.split("_")[1] for job in find_jobs([job_of(submission, "map")]))
    assert elements == ["0", "1", "3"], "those that have work left"
    slurm.wait_for(lambda: len(finished_tasks(tmp_path)) == 6, "three more tasks", 30)
    assert submission.failures() == []


def test_an_element_that_runs_out_of_time_goes_on_or_gives_up(
    slurm: SlurmCluster, tmp_path: Path, shard_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = {"slow": {"map-1": 300}, "record": str(tmp_path / "tasks")}
    submission = send_faulty(tmp_path, shard_folder, monkeypatch, faults, array_tasks=1)
    element = f"{job_of(submission, 'map')}_0"
    slurm.wait_for((tmp_path / "tasks").exists, "a first task", 30, element)
    assert not submission.crashes("map", 0).exists()
    for start in (1, 2):  # the signal of --signal: it comes before the time limit
        said = f"start {start} of map"
        slurm.wait_for(lambda said=said: said in output(submission), said, 30, element)
        slurm.wait_for(lambda start=start: output(submission).count(" to do") == start + 1, "work", 30, element)
        slurm.client("scancel", "--signal=USR1", "--batch", element)
        slurm.wait_for(lambda start=start: output(submission).count("out of time") == start, "an end", 10, element)
    slurm.wait_for(lambda: not submission.active_jobs(), "an end of the jobs", 30, element)
    assert restarts_of(submission, "map") == [1]
    assert finished_tasks(tmp_path) == ["map-0"], "what was done is not done again"
    (line,) = submission.failures()
    assert line.startswith("map, part 0 of 1: out of time, 2 times with no task done between")
    assert line.endswith("give this stage more (cluster.prep.time_limits)")


@pytest.mark.long
def test_a_requeue_in_each_stage_changes_no_byte_and_repeats_no_task(
    slurm: SlurmCluster, tmp_path: Path, shard_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "requeued").mkdir()
    faults = {"requeue": str(tmp_path / "requeued"), "record": str(tmp_path / "tasks")}
    submission = send_faulty(tmp_path, shard_folder, monkeypatch, faults)
    alone = [*options_of(tmp_path), "--output", str(tmp_path / "alone"), "--num_workers", "1"]
    assert prepare(["shards", *alone]) == 0

    # Slurm lets what it has put back wait some seconds, at least: nine requeues are most of this test.
    slurm.wait_for(lambda: not submission.active_jobs(), "an end of the jobs", 300, job_of(submission, "finish"))
    told = output(submission)
    assert (tmp_path / "shards/manifest.json").exists(), told
    assert not (tmp_path / "shards.partial").exists(), "what a kill in the clean-up left is cleared away"
    for stage in STAGES:
        parts = 2 if stage in ("map", "pack", "reduce") else 1  # of those that have a task
        assert [restarts for restarts in restarts_of(submission, stage) if restarts] == [1] * parts, (stage, told)
    assert "verified" in told
    assert open_shards(tmp_path / "shards").root_hash == open_shards(tmp_path / "alone").root_hash
    ran = finished_tasks(tmp_path)
    assert len(ran) == len(set(ran)), ran
    assert submission.failures() == []
    assert not list(submission.folder.glob("crashes/*")), "a requeue is no crash"

    (tmp_path / "shards.partial/map").mkdir(parents=True)  # as when the last job was cancelled in its clean-up
    sent = len(submission.jobs())
    give_the_command(tmp_path)
    assert [job.stage for job in submission.jobs()[sent:]] == ["finish"]
    slurm.wait_for_state(job_of(submission, "finish"), "COMPLETED|FAILED|CANCELLED", 60)
    assert not (tmp_path / "shards.partial").exists()


class _Files(SimpleHTTPRequestHandler):
    """Serves a folder, or, once a file ``gone`` is in it, nothing."""

    def log_message(self, *_: object) -> None: ...

    def send_head(self) -> Any:
        if (Path(self.directory) / "gone").exists():
            self.send_error(404)
            return None
        return super().send_head()


def _is_free(work: Path) -> bool:
    try:
        with locked_work_folder(work, LogProgress(print), exclusive=True):
            return True
    except UserError:
        return False


def test_a_signature_in_a_url_is_in_no_script_log_or_error(
    slurm: SlurmCluster, tmp_path: Path, shard_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served = tmp_path / "served"
    served.mkdir()
    write_corpus(served / "corpus.jsonl")
    (tmp_path / "cluster.yaml").write_text("shared_paths: [/]\nprep: {array_tasks: 1, cpus: 1, time_limit: '5'}\n")
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Files, directory=str(served))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/corpus.jsonl?sig=hidden"
        argv = [
            "prep", "--tokenizer", str(shard_folder / "tokenizer.json"), "--corpus.paths", f"['{url}']",
            "--seq_length", "32", "--output", str(tmp_path / "shards"), "--cluster", str(tmp_path / "cluster.yaml"),
        ]  # fmt: skip
        assert run_command("narrowbert-submit", _dispatch, argv) == 0
        printed = capsys.readouterr().out
        submission = submission_of_shards(tmp_path / "shards")
        slurm.wait_for_state(job_of(submission, "map"), "COMPLETED|FAILED|CANCELLED", 60)
        assert run_command("narrowbert-submit", _dispatch, ["cancel", str(tmp_path / "shards")]) == 0
        slurm.wait_for(lambda: not submission.active_jobs(), "an end of the jobs", 15)
        # A killed process can hold its folder for a moment after Slurm has called the job ended.
        slurm.wait_for(lambda: _is_free(tmp_path / "shards.partial"), "an end of the job's processes", 15)
        (served / "gone").touch()
        stage = ["--config", str(submission.config_file), "--stage", "plan", "--part", "0", "--parts", "1"]
        error = run_process("cluster.prep_stage", *stage, expect=2).stderr
        server.shutdown()
    assert f"corpus.paths has a URL with a secret: {submission.config_file} is readable by you alone" in printed
    assert "corpus.jsonl?sig=***" in error
    (line,) = submission.failures()
    assert "corpus.jsonl?sig=***" in line
    assert "hidden" not in printed + error + line
    holding = [
        path for path in sorted(tmp_path.rglob("*"))
        if path.is_file() and b"hidden" in path.read_bytes()
    ]  # fmt: skip
    assert submission.config_file in holding
    for path in holding:
        assert path.stat().st_mode & 0o077 == 0, f"{path} may be read by others"
        assert path == submission.config_file or path.parent.name == "shards.partial", path
