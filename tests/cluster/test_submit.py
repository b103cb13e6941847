"""``narrowbert-submit``: what is refused, in one line and with nothing sent; what is written for a job that is sent."""

import contextlib
import dataclasses
import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.__main__ import _dispatch
from cluster.config import ClusterConfig, PrepJobsConfig, check_cluster
from cluster.prep import StageJob, _options
from cluster.slurm import Job, parse_scontrol, state_in_accounts, submission_environment
from cluster.submission import submission_of_run
from data_prep.contract.command_line import UserError, run_command
from tests.cluster.slurm_cluster import SlurmCluster
from tests.conftest import write_corpus
from tests.processes import TINY_RUN, user_error
from tests.processes import run_command as process_command


@pytest.fixture
def submit_argv(tmp_path: Path, shard_folder: Path, cluster_file: Path) -> list[str]:
    return [
        "train", *TINY_RUN, "--run_dir", str(tmp_path / "run"), "--data.path", str(shard_folder),
        "--cluster", str(cluster_file),
    ]  # fmt: skip


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that ends with exit code 2."""
    capsys.readouterr()
    code = run_command("narrowbert-submit", _dispatch, argv)
    err = capsys.readouterr().err
    assert code == 2, err
    assert err.startswith("narrowbert-submit: error: ")
    assert err.count("\n") == 1, err
    return err


def accepted(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    code = run_command("narrowbert-submit", _dispatch, argv)
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return printed.out


def test_dry_run_prints_the_script_and_needs_no_slurm(
    submit_argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    printed = accepted([*submit_argv, "--dry_run", "--cluster.nodes", "4", "--training.micro_batch_size", "2"], capsys)
    assert "#SBATCH --nodes=4\n" in printed
    assert "#SBATCH --signal=B:USR1@10\n" in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--cluster.nodes", "3"], "with 6 processes take a global_batch_size of 24"),
        (["--cluster.job_name", "a b"], "cluster.job_name is 'a b'"),
        (["--cluster.job_name", "x\n#SBATCH --uid=0"], "cluster.job_name"),
        (["--cluster.partition", "$(touch hacked)"], "cluster.partition"),
        (["--cluster.nodse", "3"], "did you mean 'cluster.nodes'?"),
        (["--cluster", "nowhere.yaml"], "nowhere.yaml"),
        (["--cluster.shared_paths", "[/nowhere]"], "lies in none of cluster.shared_paths"),
        (["--data.path", "nowhere"], "nowhere"),
        (["--training.train_steps", "0"], "train_steps is 0"),
        (["--run_dir", "/proc/mine"], "run_dir /proc/mine"),
        (["--run_dir", "a\nb"], "line break"),
        (["--data.path", "https://me:hidden@example.invalid/shards"], "a password or token in data.path"),
        (["--cluster.environment", "[MLFLOW_TRACKING_PASSWORD=hidden]"], "a password or token in environment"),
    ],
)
def test_mistakes_need_no_slurm_to_be_found(
    options: list[str], expected: str, submit_argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    line = refused([*submit_argv, *options], capsys)
    assert expected in line
    assert "hidden" not in line
    assert {path.name for path in tmp_path.iterdir()} == {"cluster.yaml"}


def test_unknown_key_of_a_preset(
    submit_argv: list[str], cluster_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster_file.write_text("nodse: 3\n")
    line = refused(submit_argv, capsys)
    assert "nodse" in line


def test_an_element_hears_of_its_time_limit_in_time() -> None:
    cluster = ClusterConfig(prep=PrepJobsConfig(time_limit="12:00:00", time_limits=("map=4",)))
    signals = [
        [option for option in _options(job, cluster, "name", [], Path("/logs")) if "signal" in option]
        for job in (StageJob(stage="map", elements=(0, 1)), StageJob(stage="order", elements=()))
    ]
    assert signals == [["--signal=B:USR1@60"], ["--signal=B:USR1@120"]]


def test_preparation_names_a_stage_that_is_none(
    tmp_path: Path, cluster_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["prep", "--output", str(tmp_path / "shards"), "--cluster", str(cluster_file)]
    line = refused([*argv, "--cluster.prep.time_limits", "[maps=1:00]"], capsys)
    assert "cluster.prep.time_limits has 'maps=1:00': the stages are plan, lines, repeated, map, " in line
    assert line.endswith("did you mean 'map'?\n")


@pytest.fixture
def prep_argv(tmp_path: Path, shard_folder: Path) -> list[str]:
    """A preparation whose corpus, tokenizer and output lie in one folder that all nodes see."""
    shared = tmp_path / "shared"
    shared.mkdir()
    write_corpus(shared / "corpus.jsonl")
    shutil.copy(shard_folder / "tokenizer.json", shared)
    (tmp_path / "prep.yaml").write_text(f"shared_paths: [{shared}]\n")
    return [
        "prep", "--output", str(shared / "shards"), "--tokenizer", str(shared / "tokenizer.json"), "--corpus.paths",
        f"[{shared / 'corpus.jsonl'}]", "--seq_length", "32", "--cluster", str(tmp_path / "prep.yaml"), "--dry_run",
    ]  # fmt: skip


def test_everything_that_jobs_of_preparation_read_is_shared(
    prep_argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accepted(prep_argv, capsys)
    shared = tmp_path / "shared"
    (tmp_path / "own").mkdir()
    for name in ("corpus.jsonl", "tokenizer.json"):
        shutil.copy(shared / name, tmp_path / "own")
    (shared / "linked").mkdir()
    (shared / "linked/a.jsonl").symlink_to(tmp_path / "own/corpus.jsonl")
    for key, value in [
        ("corpus.paths", f"[{shared / 'corpus.jsonl'}, {tmp_path / 'own/corpus.jsonl'}]"),
        ("corpus.paths", f"[{shared / 'corpus.jsonl'}, {tmp_path}/own/*.jsonl]"),
        ("corpus.paths", f"[{shared / 'linked'}]"),
        ("tokenizer", str(tmp_path / "own/tokenizer.json")),
        ("duplicates.evaluation_paths", f"[{tmp_path / 'own/corpus.jsonl'}]"),
    ]:
        line = refused([*prep_argv, f"--{key}", value], capsys)
        assert line.startswith(f"narrowbert-submit: error: {key} {tmp_path}")
        assert "lies in none of cluster.shared_paths" in line


@pytest.mark.parametrize(
    "name",
    ["PGPASSWORD", "DB_PASS", "AZURE_STORAGE_SAS", "AZURE_STORAGE_CONNECTION_STRING", "SLACK_WEBHOOK", "GITHUB_PAT"],
)
def test_no_secret_of_the_environment_goes_into_a_script(
    name: str, prep_argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for value in (f"[{name}=hidden]", f'["{name}=hidden\\n"]'):
        line = refused([*prep_argv, "--cluster.environment", value], capsys)
        assert "hidden" not in line
        assert "environment" in line
    where = "GOOGLE_APPLICATION_CREDENTIALS=/x/key.json"
    assert f"export {where}\n" in accepted([*prep_argv, "--cluster.environment", f"[{where}]"], capsys)


def test_arrays_are_as_large_as_the_cluster_takes_them(
    slurm: SlurmCluster, prep_argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [argument for argument in prep_argv if argument != "--dry_run"]
    line = refused([*argv, "--cluster.prep.array_tasks", "1002"], capsys)
    assert "have at most 1001 elements (MaxArraySize), give 1001 or less" in line
    sent = accepted([*argv, "--cluster.prep.array_tasks", "1001"], capsys)
    assert sent.startswith("jobs: plan ")


def test_lead_time_is_held_against_the_checkpoint(
    submit_argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], shard_folder: Path
) -> None:
    big = ["--model.hidden_size", "2048", "--model.ffn_hidden_size", "8192", "--model.layout", "12sf"]
    line = refused([*submit_argv, *big, "--dry_run"], capsys)
    assert "cluster.signal_lead_seconds 10 is too short, a checkpoint has 7." in line
    (tmp_path / "run/logs").mkdir(parents=True)
    accepted([*submit_argv, "--dry_run"], capsys)
    point = {"step": 4, "timestamp_ms": 1, "metrics": {"checkpoint/seconds": 20.0, "train/step_seconds": 1.5}}
    (tmp_path / "run/metrics.jsonl").write_text(json.dumps(point) + "\n")
    # A folder without config.yaml holds nothing else: take what a run leaves.
    (tmp_path / "run/metrics.jsonl").rename(tmp_path / "metrics.jsonl")
    (tmp_path / "run/config.yaml").write_text("{}\n")
    (tmp_path / "metrics.jsonl").rename(tmp_path / "run/metrics.jsonl")
    from cluster.submit import check_lead_time
    from data_prep.contract.shards import open_shards
    from pipeline.config import RunConfig

    config, shards = RunConfig(run_dir=str(tmp_path / "run")), open_shards(shard_folder)
    with pytest.raises(UserError, match=r"took up to 20 s: give 44 or more"):
        check_lead_time(config, ClusterConfig(signal_lead_seconds=43), shards)
    check_lead_time(config, ClusterConfig(signal_lead_seconds=44), shards)
    # The number that is advised is one that the other check takes.
    with pytest.raises(UserError, match=r"give 44, and a time_limit of more than that in place of 0:30$"):
        check_lead_time(config, ClusterConfig(signal_lead_seconds=10, time_limit="0:30"), shards)
    check_cluster(ClusterConfig(signal_lead_seconds=44, time_limit="0:45"))
    point["metrics"]["checkpoint/seconds"] = 40_000.0
    (tmp_path / "run/metrics.jsonl").write_text(json.dumps(point) + "\n")
    with pytest.raises(UserError, match=r"80004 are needed, but Slurm takes at most 65535: write to a faster"):
        check_lead_time(config, ClusterConfig(), shards)


@given(st.integers(1, 200_000), st.integers(1, 200_000))
def test_a_lead_that_is_advised_is_accepted(lead: int, limit: int) -> None:
    cluster = ClusterConfig(signal_lead_seconds=lead, time_limit=f"0:{limit}")
    try:
        check_cluster(cluster)
    except UserError as error:
        advised = re.search(r"give at most (\d+)$", str(error))
        if advised is None:
            assert limit == 1
        else:
            check_cluster(dataclasses.replace(cluster, signal_lead_seconds=int(advised[1])))


def test_run_directory_that_only_this_machine_sees(
    submit_argv: list[str], cluster_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.submit.file_system", lambda *_: "ext4")
    cluster_file.write_text(cluster_file.read_text().replace("shared_paths: [/]\n", ""))
    assert "is on a file system of this machine (ext4)" in refused(submit_argv, capsys)


@pytest.mark.slow
def test_the_run_that_another_starts_from_is_checked_before_a_job_is_sent(
    submit_argv: list[str],
    tmp_path: Path,
    cluster_file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = [*submit_argv[: submit_argv.index("--cluster")], "--training.train_steps", "4"]
    train[train.index("--run_dir") + 1] = str(tmp_path / "elsewhere" / "parent")
    process_command("pipeline", *train)
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("PATH", "/nowhere")
    accepted([*submit_argv, "--dry_run", "--init.from_run", "~/parent@4"], capsys)
    line = refused([*submit_argv, "--dry_run", "--init.from_run", "~/parent@5"], capsys)
    assert f"{tmp_path / 'elsewhere/parent'} has no checkpoint of step 5: the newest are 4" in line
    shared = f"[{tmp_path / 'run'}, {submit_argv[submit_argv.index('--data.path') + 1]}]"
    unseen = ["--cluster.shared_paths", shared, "--dry_run", "--init.from_run", "~/parent@4"]
    assert "init.from_run" in refused([*submit_argv, *unseen], capsys)
    assert not (tmp_path / "run").exists()


def test_without_slurms_commands(
    submit_argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "there is no scontrol on this machine" in refused(submit_argv, capsys)
    assert not (tmp_path / "run").exists()
    for command in ("status", "logs", "cancel"):
        assert "nothing was sent to Slurm" in refused([command, str(tmp_path)], capsys)


@contextlib.contextmanager
def frozen_server() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        threading.Thread(target=_accept, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1]


def _accept(listener: socket.socket) -> None:
    kept = []
    with contextlib.suppress(OSError):
        while True:
            kept.append(listener.accept())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dead", "frozen"])
def test_controller_that_does_not_answer(
    slurm: SlurmCluster, kind: str, submit_argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    before = slurm.all_jobs()
    with frozen_server() as port:
        unused = 1 if kind == "dead" else port
        configuration = (slurm.folder / "slurm.conf").read_text().splitlines()
        changed = [f"SlurmctldPort={unused}" if line.startswith("SlurmctldPort") else line for line in configuration]
        (tmp_path / "conf").mkdir()
        (tmp_path / "conf/slurm.conf").write_text("\n".join(changed) + "\n")
        monkeypatch.setenv("SLURM_CONF", str(tmp_path / "conf/slurm.conf"))
        monkeypatch.setenv("NARROWBERT_SLURM_TIMEOUT", "3")
        started = time.monotonic()
        line = refused(submit_argv, capsys)
        assert time.monotonic() - started < 15
        sent = submission_of_run(tmp_path / "sent")
        sent.write("", {})
        sent.add_job("1")
        assert "scontrol" in refused(["cancel", str(tmp_path / "sent")], capsys)
        assert "not known: scontrol" in accepted(["status", str(tmp_path / "sent")], capsys)
        accepted(["logs", str(tmp_path / "sent")], capsys)
    assert "scontrol" in line
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    assert slurm.all_jobs() == before


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--cluster.partition", "gone"], "cluster.partition gone does not exist: there are main"),
        (["--cluster.nodes", "8", "--training.micro_batch_size", "1"], "partition main gives a job at most 4"),
        (["--cluster.partition", "short"], "partition short gives a job at most 1"),
        (
            ["--cluster.partition", "short", "--cluster.nodes", "1", "--cluster.time_limit", "11"],
            "time limit 11 is more than the 10 minutes",
        ),
        (["--cluster.partition", "closed"], "takes no jobs now"),
        (["--cluster.cpus_per_process", "8"], "sbatch"),
        (["--cluster.sbatch_options", "[--constraint=none-such]"], "sbatch"),
        (["--cluster.sbatch_options", "[--nonsense=1]"], "sbatch"),
    ],
)
def test_what_the_cluster_cannot_give(
    slurm: SlurmCluster, options: list[str], expected: str, submit_argv: list[str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    before = slurm.all_jobs()
    assert expected in refused([*submit_argv, *options], capsys)
    assert slurm.all_jobs() == before
    assert not (tmp_path / "run" / "submission").exists()


def test_refusal_of_a_real_process_is_one_line(submit_argv: list[str], tmp_path: Path) -> None:
    line = user_error("cluster", *submit_argv, "--cluster.job_name", "$(touch hacked)", cwd=tmp_path)
    assert "cluster.job_name" in line
    assert not (tmp_path / "hacked").exists()


def test_environment_of_sbatch_cannot_change_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SBATCH_TIMELIMIT", "SBATCH_PARTITION", "SBATCH_ACCOUNT", "SLURM_JOB_ID", "SLURM_CONF", "MINE"):
        monkeypatch.setenv(name, "1")
    kept = submission_environment(["partition"])
    assert {"SBATCH_ACCOUNT", "SLURM_CONF", "MINE"} <= kept.keys()
    assert not {"SBATCH_TIMELIMIT", "SBATCH_PARTITION", "SLURM_JOB_ID"} & kept.keys()


def test_fields_of_a_job_are_slurms() -> None:
    line = (
        "JobId=12 ArrayJobId=11 ArrayTaskId=3 JobName=a JobState=RUNNING Reason=None Restarts=2 RunTime=00:01:10 "
        "TimeLimit=1-00:00:00 NodeList=node[0-1] ExitCode=0:0 Command=/a JobState=FAILED\n"
    )
    (job,) = parse_scontrol(line)
    assert (job.job_id, job.state, job.reason, job.restarts, job.nodes) == ("11_3", "RUNNING", "", 2, "node[0-1]")
    assert job.is_active


def test_a_job_whose_end_the_accounts_have_missed_is_not_waited_for() -> None:
    assert Job(job_id="1", state=state_in_accounts("COMPLETED")).state == "COMPLETED"
    runaway = Job(job_id="1", state=state_in_accounts("RUNNING"))
    assert (runaway.state, runaway.is_active) == ("RUNNING IN THE ACCOUNTS ONLY", False)
