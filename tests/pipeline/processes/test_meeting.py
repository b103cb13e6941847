"""Ranks that wait for each other: who is missing is said, and a wait ends when it is asked to."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.processes.meeting import meet
from pipeline.processes.signals import LostConnectionError
from pipeline.processes.world import World
from tests.processes import TINY_RUN, free_port, start_command, wait_until

PROGRAM = """
import os, sys
from pipeline.processes.meeting import meet
from pipeline.processes.signals import StoppedError, catch_stop_signals
from pipeline.processes.world import World
catch_stop_signals()
try:
    meet(World(rank=int(sys.argv[1]), local_rank=0, size=3), 300, first_word_s=0.5)
except StoppedError as error:
    sys.stderr.write(f"{error}\\n")
    sys.stderr.flush()
    os._exit(85)
"""


@pytest.mark.parametrize(("rank", "missing"), [(0, "2 of 3 ranks (1, 2)"), (1, "rank 0 at 127.0.0.1")])
def test_a_rank_that_waits_says_for_whom_and_ends_when_asked(rank: int, missing: str) -> None:
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    waiting = subprocess.Popen(
        [sys.executable, "-c", f"import os; os.environ.update({environment})\n{PROGRAM}", str(rank)],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert waiting.stderr is not None
    try:
        line = waiting.stderr.readline()
        assert f"rank {rank} waits for {missing}" in line
        waiting.send_signal(signal.SIGTERM)
        assert waiting.wait(10) == 85
        assert "asked to stop" in waiting.stderr.read()
    finally:
        waiting.kill()


def test_ranks_meet_whoever_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    stores = []
    threads = [
        threading.Thread(target=lambda rank=rank: stores.append(meet(World(rank=rank, local_rank=0, size=2), 60)))
        for rank in (1, 0)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(stores) == 2


def test_who_has_not_come_in_time_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    with pytest.raises(LostConnectionError, match=r"1 of 2 ranks \(1\) did not come within 1 s"):
        meet(World(rank=0, local_rank=0, size=2), 1)


@pytest.mark.slow
def test_training_that_waits_for_a_rank_is_asked_to_stop(tmp_path: Path, shard_folder: Path) -> None:
    waiting = start_command(
        "pipeline", "train", *TINY_RUN, "--run_dir", str(tmp_path / "run"), "--data.path", str(shard_folder),
        RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()),
    )  # fmt: skip
    try:
        wait_until((tmp_path / "run/logs").exists, waiting, "the run directory")
        waiting.send_signal(signal.SIGTERM)
        _, err = waiting.communicate(timeout=60)
        assert waiting.returncode == 85
        assert "asked to stop after" in err.splitlines()[-1]
    finally:
        waiting.kill()
