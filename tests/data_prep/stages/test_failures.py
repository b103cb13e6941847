"""Tasks that fail while the others of their stage go on."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from data_prep.config import CorpusConfig, PrepConfig
from data_prep.contract.command_line import UserError
from data_prep.corpus import partitions
from data_prep.report.failures import MOST_IN_A_ROW, TasksFailed, TasksRefused
from data_prep.stages import build
from data_prep.stages.workers import Workers
from tests.conftest import write_corpus
from tests.data_prep.conftest import NoProgress

TASKS = 2 * MOST_IN_A_ROW


@pytest.fixture
def planned(tiny_config: PrepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PrepConfig:
    """A plan of many map tasks, run in this process so that a test can make some of them fail."""
    monkeypatch.setattr(partitions, "MIN_PARTITION_BYTES", 100)
    monkeypatch.setattr(build, "Workers", lambda count, **_: Workers(count))
    (tmp_path / "corpus").mkdir()
    for number in range(TASKS):
        write_corpus(tmp_path / f"corpus/{number:03}.jsonl", 1, first=number)
    corpus = CorpusConfig(paths=(str(tmp_path / "corpus"),))
    config = dataclasses.replace(tiny_config, corpus=corpus, output=str(tmp_path / "shards"), num_workers=1)
    build.run_task(config, "plan", None, NoProgress())
    return config


def poison(monkeypatch: pytest.MonkeyPatch, errors: dict[int, Exception]) -> None:
    run = build._RUN["map"]

    def run_or_fail(plan: Any, index: int) -> dict[str, Any]:
        if index in errors:
            raise errors[index]
        return run(plan, index)

    monkeypatch.setitem(build._RUN, "map", run_or_fail)


def test_all_other_tasks_are_done_first(planned: PrepConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "https://me:hidden@example.invalid/a"
    poison(monkeypatch, {3: OverflowError(f"too\nlarge: {url}"), 5: UserError(f"no {url}")})
    progress = NoProgress()
    with pytest.raises(TasksFailed) as caught:
        build.run_tasks(planned, "map", range(TASKS), progress, keep_going=True)
    assert not isinstance(caught.value, UserError), "one is a bug: another start may end otherwise"
    shown = "https://***@example.invalid/a"
    assert str(caught.value) == (
        f"map task 3: OverflowError: too large: {shown}; map task 5: no {shown} (every other one is done)"
    )
    assert build.unfinished_tasks(planned, "map") == [3, 5]
    assert "Traceback" in progress.notes[0]
    assert "hidden" not in "".join(progress.notes)
    with pytest.raises(TasksRefused):
        build.run_tasks(planned, "map", [4, 5, 6], NoProgress(), keep_going=True)


def test_a_stage_in_which_everything_fails_ends_early(planned: PrepConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, {index: UserError("no space left") for index in range(1, TASKS)})
    with pytest.raises(TasksRefused) as caught:
        build.run_tasks(planned, "map", range(TASKS), NoProgress(), keep_going=True)
    assert len(caught.value.failures) == MOST_IN_A_ROW
    assert f"; and {MOST_IN_A_ROW - 5} more ({MOST_IN_A_ROW - 1} were not tried any more)" in str(caught.value)
    assert build.unfinished_tasks(planned, "map") == list(range(1, TASKS))


def test_a_damaged_result_that_a_worker_finds_is_made_again(
    tiny_config: PrepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "MIN_PARTITION_BYTES", 5_000)
    (tmp_path / "corpus").mkdir()
    for number in range(3):
        write_corpus(tmp_path / f"corpus/{number}.jsonl", 20, first=20 * number)
    corpus = CorpusConfig(paths=(str(tmp_path / "corpus"),))
    config = dataclasses.replace(tiny_config, corpus=corpus, output=str(tmp_path / "shards"), num_workers=2)
    for stage in ("plan", "map", "duplicates", "survivors"):
        build.run_task(config, stage, None, NoProgress())
    damaged = tmp_path / "shards.partial/map/000001/tokens.bin"
    damaged.write_bytes(bytes(damaged.stat().st_size))
    progress = NoProgress()
    build.run_tasks(config, "pack", range(3), progress, keep_going=True)
    (note,) = progress.notes
    assert note.startswith("map task 1 of ")
    assert "damaged (tokens.bin has another hash)" in note
    assert any(damaged.read_bytes())


def test_finish_after_a_kill_in_its_clean_up(tiny_config: PrepConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny_config, output=str(tmp_path / "shards"), num_workers=1)
    build.build_shards(config, NoProgress())
    (tmp_path / "shards.partial/map").mkdir(parents=True)  # the plan is gone already
    assert build.run_task(config, "finish", None, NoProgress()).endswith("is there already")
    assert not (tmp_path / "shards.partial").exists()
