"""Ranks that wait for each other: who is missing is said, and a wait ends when it is asked to."""

import os
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
import sys
from pipeline.processes.meeting import meet
from pipeline.processes.signals import StoppedError, catch_stop_signals
from pipeline.processes.world import World
catch_stop_signals()
try:
    meet(World(rank=int(sys.argv[1]), local_rank=0, size=3), 300, first_word_s=0.5)
except StoppedError as error:
    sys.stderr.write(f"{error}\\n")
    sys.exit(85)
"""


def start_rank(rank: int, port: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(rank)],
        env={**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("rank", "missing"), [(0, "2 of 3 ranks (1, 2)"), (1, "rank 0 at 127.0.0.1")])
def test_a_rank_that_waits_says_for_whom_and_ends_when_asked(rank: int, missing: str) -> None:
    waiting = start_rank(rank, free_port())
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


def test_who_waits_for_others_notices_that_rank_0_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    rank_0 = start_rank(0, port)
    assert rank_0.stderr is not None
    try:
        assert "waits for 2 of 3 ranks (1, 2)" in rank_0.stderr.readline()
        threading.Timer(1, rank_0.kill).start()
        with pytest.raises(LostConnectionError, match=rf"rank 0 at 127\.0\.0\.1:{port} is lost .*start all ranks"):
            meet(World(rank=1, local_rank=0, size=3), 60)
    finally:
        rank_0.kill()


@pytest.mark.long
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
