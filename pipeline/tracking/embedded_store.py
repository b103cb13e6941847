"""The tracking store in a file: made whole by one process, or not there.

MLflow makes the tables of a sqlite store in dozens of steps, each its own transaction. Two processes that do so at
once, or a kill in between, leave a file that no later start can repair.
"""

import contextlib
import fcntl
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from data_prep.contract.command_line import UserError, one_line
from data_prep.contract.files import process_name

_PREFIX = "sqlite:///"
_MAKE_S = 600
_PATIENCE_S = 15.0
"""For a store that another program, such as ``mlflow ui``, may just be making."""

_MAKE = """
import sys
from mlflow.tracking import MlflowClient
MlflowClient(tracking_uri=sys.argv[1]).search_experiments()
"""


def make_store(address: str) -> None:
    """Make the store if it is a sqlite file that is not there; leave any other address alone.

    Several processes may call this at once. The file gets its name when it is whole.

    Raises:
        UserError: the file is half-made, is no database, or cannot be made.
    """
    if not address.startswith(_PREFIX) or ":memory:" in address:
        return
    path = Path(address.removeprefix(_PREFIX).partition("?")[0]).absolute()
    if not path.parent.is_dir() or _is_whole(path):
        return
    with _locked(path.parent):
        if _is_empty(path):
            _make(path)
    deadline = time.monotonic() + _PATIENCE_S
    while not _is_whole(path):
        if time.monotonic() > deadline:
            raise UserError(
                f"the MLflow store {path} is half-made: a process was killed when it made it. It holds no run yet: "
                "delete it, and narrowbert sync RUN_DIR sends each run again"
            )
        time.sleep(0.5)


def _is_empty(path: Path) -> bool:
    return not path.exists() or path.stat().st_size == 0


def _is_whole(path: Path) -> bool:
    """Whether a store has all its tables. MLflow makes the first experiment, Default, last."""
    if _is_empty(path):
        return False
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=30)) as connection:
            tables = {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}
            if not tables & {"experiments", "alembic_version"}:
                return bool(tables)  # of somebody else: MLflow adds its own
            torn = any(name.startswith("_alembic_tmp_") for name in tables)
            if torn or not {"experiments", "alembic_version"} <= tables:
                return False
            if connection.execute("select count(*) from experiments").fetchone()[0]:
                return True
            return connection.execute("select version_num from alembic_version").fetchall() == [(_newest_revision(),)]
    except sqlite3.OperationalError:  # locked, or a disk that fails: MLflow says more
        return True
    except sqlite3.DatabaseError as error:
        raise UserError(f"the MLflow store {path} is no database ({error}): move it away, or name another") from error


def _newest_revision() -> str | None:
    """Of the tables of this MLflow: a store that ``mlflow db upgrade`` has made has no experiment yet."""
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(files("mlflow.store") / "db_migrations")).get_current_head()


def _make(path: Path) -> None:
    """Make a store beside its place, and put it there unless another program was faster."""
    host = process_name().rpartition("-")[0]  # the lock may not reach another machine, which may be at work
    for left in path.parent.glob(f".{path.name}.{host}-*.partial*"):
        left.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{process_name()}.partial")
    target = path if path.exists() else temporary  # an empty file may be open elsewhere
    command = [sys.executable, "-P", "-c", _MAKE, f"{_PREFIX}{target}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_MAKE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(one_line(f"the MLflow store {path} cannot be made: {error}")) from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise UserError(one_line(f"the MLflow store {path} cannot be made: {lines[-1]}"))
    if target == path:
        return
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        temporary.rename(path)
    temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes that make a store in it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
