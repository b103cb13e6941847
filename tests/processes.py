"""The one way in which tests run the project's commands: real processes, bounded lives."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

TIMEOUT_S = 300

# Small and quick: 2 layers of 32, ten steps.
TINY_RUN = [
    "--model.hidden_size", "32", "--model.num_attention_heads", "4", "--model.ffn_hidden_size", "64",
    "--model.max_position_embeddings", "32", "--training.train_steps", "10",
    "--training.global_batch_size", "16", "--training.micro_batch_size", "4",
    "--training.log_interval", "1", "--training.eval_interval", "100", "--training.save_interval", "4",
    "--tracking.enabled", "false",
]  # fmt: skip


def start_command(package: str, *argv: str, cwd: Path | None = None, **environment: str) -> subprocess.Popen[str]:
    """Start ``python -m package argv`` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", package, *argv],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_command(
    package: str, *argv: str, expect: int = 0, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and check its exit code."""
    process = start_command(package, *argv, cwd=cwd, **environment)
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        kill_group(process)
        out, err = process.communicate()
        raise AssertionError(f"{argv} took more than {TIMEOUT_S} s\n{out}\n{err}") from None
    assert process.returncode == expect, f"{argv} ended with {process.returncode}, not {expect}\n{out}\n{err}"
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run_ranks(world_size: int, argv_of_rank: Callable[[int], list[str]]) -> list[str]:
    """Run ``python argv`` once a rank, side by side, each to a good end; what each printed."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", *argv_of_rank(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    printed = []
    try:
        for process in processes:
            out, _ = process.communicate(timeout=2 * TIMEOUT_S)
            assert process.returncode == 0, out
            printed.append(out)
    finally:
        for process in processes:
            process.kill()
    return printed


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Ranks:
    """A training whose ranks a cluster's launcher would start: each is ours, to be hit alone.

    Args:
        size: how many.
        argv: after ``narrowbert``.
        faults: what tests/faults/inject.py does to them.
    """

    def __init__(self, size: int, *argv: str, faults: Sequence[Mapping[str, Any]] = (), **environment: str) -> None:
        common = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.faults.inject", json.dumps(list(faults)), *argv],
                cwd=Path(__file__).parent.parent,
                env={
                    **os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo",
                    **environment,
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(size)
        ]  # fmt: skip

    def kill(self) -> None:
        """SIGKILL all, as a lost node would."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.communicate()

    def end(self, *codes: int) -> list[str]:
        """Wait for the end of every rank, each with one of ``codes``; what each printed."""
        printed = []
        try:
            for rank, process in enumerate(self.processes):
                out, err = process.communicate(timeout=TIMEOUT_S)
                assert process.returncode in codes, f"rank {rank} ended with {process.returncode}\n{out}\n{err}"
                printed.append(out + err)
        finally:
            self.kill()
        return printed


def kill_group(process: subprocess.Popen[str]) -> None:
    """SIGKILL the process and all it started, as a lost node would."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], what: str) -> None:
    """Wait for something that a running process brings about."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert process.poll() is None, f"the process ended before {what}: {process.communicate()}"
        assert time.monotonic() < deadline, f"{what} did not happen in {TIMEOUT_S} s"
        time.sleep(0.02)


def user_error(package: str, *argv: str, cwd: Path | None = None, **environment: str) -> str:
    """Run a command that must be refused: exit code 2, one line on stderr, which is returned."""
    ended = run_command(package, *argv, expect=2, cwd=cwd, **environment)
    lines = ended.stderr.strip().splitlines()
    assert len(lines) == 1, ended.stderr
    return lines[0]


def losses(run_dir: Path) -> dict[int, float]:
    """Training loss by step, from the spool: the exact values, as their repr was written."""
    found = {}
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "train/loss" in record["metrics"]:
            found[record["step"]] = record["metrics"]["train/loss"]
    return found
