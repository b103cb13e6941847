"""What tracking costs the trainer.

1. microseconds to append a step to ``metrics.jsonl``: the loss of every step, and a log line of twenty metrics;
2. step times of a training with MLflow against one without, in rounds: with a working store and under each fault.
   One process, one thread; the rest of the machine should be idle.

    python benchmarks/tracking.py SHARDS [ROUNDS]
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from pipeline.runs.records import Spool

STEPS, SKIPPED = 400, 150
SIZES = [
    "--model.layout", "1sf:3sf", "--model.hidden_size", "128", "--model.num_attention_heads", "4",
    "--model.ffn_hidden_size", "512", "--training.global_batch_size", "2", "--training.micro_batch_size", "2",
    "--training.train_steps", str(STEPS), "--training.log_interval", "1", "--training.eval_interval", "100000",
    "--training.eval_rows", "16", "--training.save_interval", "100000", "--training.precision", "fp32",
]  # fmt: skip


def append() -> None:
    for name, count in (("the loss", 1), ("a log of 20 metrics", 20)):
        metrics = {f"train/metric_{i}": 1.0 / (i + 3) for i in range(count)}
        with tempfile.TemporaryDirectory() as folder:
            spool, times = Spool(Path(folder)), []
            for step in range(20_000):
                started = time.perf_counter()
                spool.write(step, metrics)
                times.append((time.perf_counter() - started) * 1e6)
            spool.close()
        times.sort()
        print(f"append {name}: median {times[10_000]:.1f} us, 99 of 100 below {times[19_800]:.1f} us")


def step_seconds(shards: str, folder: Path, *options: str, **environment: str) -> float:
    """Median step time of one training in ``folder``, without the first steps."""
    subprocess.run(
        [sys.executable, "-P", "-m", "pipeline", "train", "--data.path", shards, "--run_dir", "run", *SIZES, *options],
        cwd=folder, check=True, capture_output=True, timeout=600, env={**os.environ, **environment},
    )  # fmt: skip
    records = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    times = [r["metrics"]["train/step_seconds"] for r in records if "train/step_seconds" in r["metrics"]]
    return statistics.median(times[SKIPPED:])


@contextlib.contextmanager
def child(target: Callable[[], None]) -> Iterator[None]:
    """``target`` in a process of its own, for as long as the context is open."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            target()
        os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@contextlib.contextmanager
def listener(answer: bytes | None) -> Iterator[dict[str, str]]:
    """A port that answers every request with ``answer``, or accepts and never answers (a frozen server)."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            held = []
            while True:
                connection, _ = server.accept()
                held.append(connection)
                if answer is not None:
                    connection.recv(65536)
                    connection.sendall(answer)
                    held.pop().close()

        with child(serve):
            yield {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{server.getsockname()[1]}"}


@contextlib.contextmanager
def shipper_killed(folder: Path) -> Iterator[dict[str, str]]:
    """Every shipper that works in ``folder`` is killed within a second."""

    def hunt() -> None:
        while True:
            for process in psutil.process_iter(["cmdline"]):
                if "pipeline.tracking.shipping" in (process.info["cmdline"] or []) and process.cwd() == str(folder):
                    process.kill()
            time.sleep(1)

    with child(hunt):
        yield {}


@contextlib.contextmanager
def store_locked(folder: Path, empty_store: Path) -> Iterator[dict[str, str]]:
    """A sqlite store that somebody else is writing to all the time."""
    shutil.copy(empty_store, folder / "mlflow.db")
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        connection.execute("begin exclusive")
        yield {}


def conditions(empty_store: Path) -> dict[str, Callable[[Path], contextlib.AbstractContextManager[dict[str, str]]]]:
    """What may be wrong with tracking: name -> context around a training in a folder; gives environment variables."""
    error = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    refused = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    return {
        "sqlite": lambda _: contextlib.nullcontext({}),
        "sqlite locked": lambda folder: store_locked(folder, empty_store),
        "shipper killed": shipper_killed,
        "server down": lambda _: contextlib.nullcontext({"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}),
        "server frozen": lambda _: listener(None),
        "server answers 500": lambda _: listener(error),
        "server refuses the login": lambda _: listener(refused),
    }


def steps(shards: str, rounds: int) -> None:
    """Every round trains once without tracking and once under each condition, in an order that turns."""
    with tempfile.TemporaryDirectory() as store:
        subprocess.run(
            [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{store}/mlflow.db"],
            check=True, capture_output=True,
        )  # fmt: skip
        cases = {"untracked": lambda _: contextlib.nullcontext({}), **conditions(Path(store) / "mlflow.db")}
        ratios: dict[str, list[float]] = {name: [] for name in cases}
        names = list(cases)
        for turn in range(rounds):
            found = {}
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                with tempfile.TemporaryDirectory() as folder, cases[name](Path(folder)) as environment:
                    options = ["--tracking.enabled", str(name != "untracked").lower()]
                    found[name] = step_seconds(shards, Path(folder), *options, **environment)
            for name in names:
                ratios[name].append(found[name] / found["untracked"])
            print({name: f"{seconds * 1000:.1f} ms" for name, seconds in found.items()}, flush=True)
    for name in names[1:]:
        shown = ", ".join(f"{ratio:.3f}" for ratio in sorted(ratios[name]))
        print(f"step time, {name}: {statistics.median(ratios[name]):.3f} of the untracked run's ({shown})")


if __name__ == "__main__":
    os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu")
    append()
    if len(sys.argv) > 1:
        steps(str(Path(sys.argv[1]).resolve()), int(sys.argv[2]) if len(sys.argv) > 2 else 5)
