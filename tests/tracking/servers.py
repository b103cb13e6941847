"""Real tracking servers over loopback, with bounded lives, and what is in their stores."""

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy

from pipeline.runs.records import Spool, append_event
from pipeline.tracking.description import write_description

_START_S = 120


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class MlflowServer:
    """``mlflow server`` in a process group of its own: start, stop, freeze, thaw."""

    def __init__(self, folder: Path, store: str, *options: str, scheme: str = "http", **environment: str) -> None:
        self.store, self.port = store, free_port()
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self._folder, self._options, self._environment = folder, options, environment
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        assert self._process is None
        artifacts = self._folder / "artifacts"
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-P", "-m", "mlflow", "server", "--backend-store-uri", self.store,
                    "--artifacts-destination", str(artifacts), "--host", "127.0.0.1", "--port", str(self.port),
                    "--workers", "1", *self._options,
                ],
                cwd=self._folder, stdout=log, stderr=log, start_new_session=True,
                env={
                    **os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true",
                    **self._environment,
                },
            )  # fmt: skip
        deadline = time.monotonic() + _START_S
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "server.log").read_text()
            assert time.monotonic() < deadline, (self._folder / "server.log").read_text()
            time.sleep(0.1)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            if self.url.startswith("https"):
                return True
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                return answer.status == 200
        return False

    def stop(self) -> None:
        """Kill it with all its workers, as a crash would."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """SIGSTOP: connections are accepted by the kernel, nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


_ALWAYS_500 = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_error(500)
    do_POST = do_PUT = do_PATCH = do_GET
    def log_message(self, *_): print("refused", flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@contextlib.contextmanager
def broken_server(port: int) -> Iterator[subprocess.Popen[str]]:
    """A server that answers everything with 500; each answer is a line on its standard output."""
    process = subprocess.Popen([sys.executable, "-c", _ALWAYS_500, str(port)], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def postgres_binaries() -> Path | None:
    """The folder of initdb and postgres, or None where PostgreSQL is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


@contextlib.contextmanager
def postgres(binaries: Path, folder: Path) -> Iterator[str]:
    """A PostgreSQL server of its own over loopback; yields the address of an empty database.

    It refuses to run as root, so root runs it as the user ``postgres`` that its package makes.
    """
    as_user: dict = {}
    if os.getuid() == 0:
        account = pwd.getpwnam("postgres")
        as_user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        os.chown(folder, account.pw_uid, account.pw_gid)
        for parent in folder.parents:  # pytest's folders are for their owner alone
            if parent.stat().st_uid == 0 and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)
    secret, port = folder / "password", free_port()
    secret.write_text("planted-in-postgres\n")
    secret.chmod(0o644)
    subprocess.run(
        [binaries / "initdb", "-D", folder / "data", "-U", "narrowbert", "-A", "scram-sha-256", "--pwfile", secret,
         "--no-sync", "-E", "UTF8", "--locale", "C"],
        check=True, capture_output=True, timeout=_START_S, cwd=folder, **as_user,
    )  # fmt: skip
    with (folder / "postgres.log").open("wb") as log:
        process = subprocess.Popen(
            [binaries / "postgres", "-D", folder / "data", "-p", str(port), "-k", folder, "-c", "fsync=off",
             "-c", "listen_addresses=127.0.0.1"],
            stdout=log, stderr=log, cwd=folder, **as_user,
        )  # fmt: skip
    try:
        url = f"postgresql+psycopg2://narrowbert:planted-in-postgres@127.0.0.1:{port}/postgres"
        engine, deadline = sqlalchemy.create_engine(url), time.monotonic() + _START_S
        while True:
            try:
                engine.connect().close()
                break
            except sqlalchemy.exc.OperationalError:
                assert time.monotonic() < deadline, (folder / "postgres.log").read_text()
                assert process.poll() is None, (folder / "postgres.log").read_text()
                time.sleep(0.1)
        engine.dispose()
        yield url
    finally:
        process.send_signal(signal.SIGINT)  # fast shutdown: closes connections
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def stored_points(store: str, run_name: str) -> list[tuple[str, int, int, str]]:
    """Every row of the store's metrics table of the one run with this name: key, step, time, repr of the value."""
    engine = sqlalchemy.create_engine(store)
    with engine.connect() as connection:
        runs = connection.execute(
            sqlalchemy.text("select run_uuid from runs where name = :name"), {"name": run_name}
        ).fetchall()
        assert len(runs) == 1, f"{len(runs)} runs of one lineage"
        rows = connection.execute(
            sqlalchemy.text("select key, step, timestamp, value, is_nan from metrics where run_uuid = :run"),
            {"run": runs[0][0]},
        ).fetchall()
    engine.dispose()
    return sorted((key, step, at, repr(float("nan") if is_nan else value)) for key, step, at, value, is_nan in rows)


def spooled_points(run_dir: Path) -> list[tuple[str, int, int, str]]:
    """The same, from the run's metrics.jsonl."""
    points = []
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        points += [(k, record["step"], record["timestamp_ms"], repr(float(v))) for k, v in record["metrics"].items()]
    return sorted(points)


def spooled_run(folder: Path, steps: int = 700, **metrics: float) -> Path:
    """A run directory as a training leaves it when no server was ever there: more points than one batch holds."""
    run_dir = folder / "run"
    (run_dir / "logs").mkdir(parents=True)
    (run_dir / "config.yaml").write_text("run_dir: run\n")
    append_event(run_dir, "start", 0, "start 1", hosts=["a"])
    write_description(
        run_dir,
        {
            "experiment_name": "shared",
            "run_name": "run",
            "params": {f"model.p{i}": i for i in range(120)},  # more than one batch, too
            "tags": {"narrowbert.lineage": "abc"},
            "dataset": {"name": "shards", "path": "/nowhere", "root_hash": "0123456789abcdef" * 4, "profile": {}},
        },
    )
    spool = Spool(run_dir)
    for step in range(1, steps + 1):
        spool.write(step, {"train/loss": 1.0 / step, "train/gradient_norm": 3.0 * step} | metrics)
    spool.close()
    (run_dir / "DONE").write_text("")
    return run_dir
