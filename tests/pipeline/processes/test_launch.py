import os
import signal
from pathlib import Path

import pytest

from pipeline.processes.launch import report_failure
from tests.marks import long
from tests.processes import TINY_RUN, run_command, start_command, wait_until


def ranks_of(run_dir: Path) -> list[int]:
    """Process ids whose command line names the run directory."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(run_dir).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["launcher", long("rank")])
def test_nothing_goes_on_when_the_launcher_or_a_rank_is_killed(tmp_path: Path, shard_folder: Path, victim: str) -> None:
    run_dir = tmp_path / "run"
    launcher = start_command(
        "pipeline", "train", *TINY_RUN, "--run_dir", str(run_dir), "--data.path", str(shard_folder),
        "--processes", "2", "--training.train_steps", "100000",
    )  # fmt: skip
    wait_until((run_dir / "checkpoints/latest").exists, launcher, "the first checkpoint")
    ranks = [pid for pid in ranks_of(run_dir) if pid != launcher.pid]
    assert len(ranks) == 2
    os.kill(launcher.pid if victim == "launcher" else ranks[1], signal.SIGKILL)
    _, err = launcher.communicate(timeout=60)
    if victim == "rank":
        assert launcher.returncode == 1
        assert "rank 1 was ended by SIGKILL" in err
    wait = 0
    while ranks_of(run_dir) and wait < 200:
        signal.sigtimedwait([], 0.05)
        wait += 1
    assert ranks_of(run_dir) == []


@pytest.mark.slow
def test_an_interactive_srun_shell_starts_the_processes_that_are_asked_for(tmp_path: Path, shard_folder: Path) -> None:
    shell = {
        "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "1",
        "SLURM_STEP_NODELIST": "localhost",
    }  # fmt: skip
    run_command(
        "pipeline", "train", *TINY_RUN, "--run_dir", str(tmp_path / "run"), "--data.path", str(shard_folder),
        "--processes", "2", **shell,
    )  # fmt: skip
    assert '"start 1, 2 processes"' in (tmp_path / "run/events.jsonl").read_text()


def test_a_rank_that_ends_without_its_line_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert report_failure(1, 2, tmp_path) == 2
    (tmp_path / "rank-1.log").write_text("unknown option -P\n")  # of the interpreter, which ends with 2 as well
    assert report_failure(1, 2, tmp_path) == 2
    line = f"narrowbert: error: rank 1 does not say why it ended; its log is {tmp_path / 'rank-1.log'}\n"
    assert capfd.readouterr().err == 2 * line
