"""Which start of a run is the newest: claimed by one alone, and never decided by what could not be read."""

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from data_prep.contract.command_line import UserError
from pipeline.config import RunConfig
from pipeline.data.mixture import Mixture
from pipeline.runs.attempts import is_newest_attempt, register_attempt

ROUNDS = 100


def start_again_and_again(folder: Path, shards: Mixture, barrier: Any, queue: Any) -> None:
    """Register a start in each of many runs, each at the same moment as another process."""
    found: list[tuple[int, str] | str] = []
    for number in range(ROUNDS):
        barrier.wait(60)
        try:
            attempt = register_attempt(folder / str(number), RunConfig(), shards, 1)
            found.append((attempt.number, attempt.lineage_id))
        except Exception as error:  # reported below
            found.append(f"{type(error).__name__}: {error}")
    queue.put(found)


def test_two_starts_at_once_get_different_numbers_and_one_lineage(tmp_path: Path, shards: Mixture) -> None:
    for number in range(ROUNDS):
        (tmp_path / str(number)).mkdir()
    fork = multiprocessing.get_context("fork")
    barrier, queue = fork.Barrier(2), fork.Queue()
    arguments = (tmp_path, shards, barrier, queue)
    starts = [fork.Process(target=start_again_and_again, args=arguments, daemon=True) for _ in range(2)]
    for process in starts:
        process.start()
    both = [queue.get(timeout=120) for _ in starts]
    for process in starts:
        process.join(60)
    for number in range(ROUNDS):
        run_dir = tmp_path / str(number)
        ended = [found[number] for found in both]
        won = [found for found in ended if not isinstance(found, str)]
        assert all("a newer start of this run has taken over: start 1 " in text for text in ended if text not in won)
        assert 2 in {attempt for attempt, _ in won}, ended
        assert len({attempt for attempt, _ in won}) == len(won), ended
        assert len({lineage for _, lineage in won}) == 1, ended
        assert sorted(path.name for path in (run_dir / "attempts").iterdir()) == ["1", "2"]
        assert is_newest_attempt(run_dir, 2)
        assert not is_newest_attempt(run_dir, 1)
        third = register_attempt(run_dir, RunConfig(), shards, 1)
        assert (third.number, third.lineage_id) == (3, won[0][1])
        assert not list(run_dir.glob(".tmp-*"))


def test_a_run_of_an_older_version_goes_on_from_its_number(tmp_path: Path, shards: Mixture) -> None:
    first = register_attempt(tmp_path, RunConfig(), shards, 1)
    record = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "attempts/1").unlink()
    (tmp_path / "attempts").rmdir()
    (tmp_path / "run.json").write_text(json.dumps(record | {"attempt": 7}))
    assert not is_newest_attempt(tmp_path, 6)
    assert is_newest_attempt(tmp_path, 7)
    eighth = register_attempt(tmp_path, RunConfig(), shards, 1)
    assert (eighth.number, eighth.lineage_id) == (8, first.lineage_id)
    assert not is_newest_attempt(tmp_path, 7)


@pytest.mark.parametrize("state", ["missing", "empty", "torn", "unreadable"])
def test_what_cannot_be_read_says_nothing(tmp_path: Path, shards: Mixture, state: str) -> None:
    number = register_attempt(tmp_path, RunConfig(), shards, 1).number
    path, text = tmp_path / "run.json", (tmp_path / "run.json").read_text()
    path.unlink()
    if state == "unreadable":
        path.mkdir()  # to open it is an OSError, as EIO and ESTALE are
    elif state != "missing":
        path.write_text("" if state == "empty" else text[: len(text) // 2])
    assert is_newest_attempt(tmp_path, number)
    (tmp_path / "attempts").rename(tmp_path / "away")
    assert is_newest_attempt(tmp_path, number)
    (tmp_path / "away").rename(tmp_path / "attempts")
    (tmp_path / "attempts/2").touch()
    assert not is_newest_attempt(tmp_path, number)


def test_a_claim_that_cannot_be_made_is_one_line(tmp_path: Path, shards: Mixture) -> None:
    (tmp_path / "attempts").write_text("no folder")
    with pytest.raises(UserError, match="attempts cannot be written"):
        register_attempt(tmp_path, RunConfig(), shards, 1)


def test_what_describes_a_run_is_on_disk_before_it_is_named(
    tmp_path: Path, shards: Mixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[str, bool]] = []
    flush = os.fsync

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        flushed.append((str(path.relative_to(tmp_path.resolve())), (tmp_path / "run.json").exists()))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    register_attempt(tmp_path, RunConfig(), shards, 1)
    assert ("attempts/1", False) in flushed
    assert ("attempts", False) in flushed
    assert any(name.startswith(".tmp-run.json.") and not renamed for name, renamed in flushed), flushed
    assert flushed[-1] == (".", True)  # the folder, after the rename
