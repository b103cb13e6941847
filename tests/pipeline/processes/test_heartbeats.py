from pathlib import Path

import pytest

from pipeline.processes import heartbeats
from pipeline.processes.heartbeats import Heartbeat, Heartbeats
from pipeline.runs.attempts import Attempt


def start_of_run(number: int) -> Attempt:
    return Attempt(
        lineage_id="a test", number=number, order_version=2, eval_masked_per_row=5, parent=None, may_differ_until={}
    )


def beat(rank: int, ticks: int) -> Heartbeat:
    return Heartbeat(rank=rank, host="here", pid=100 + rank, moves=ticks, place="somewhere", ticks=ticks)


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "memory").mkdir()
    monkeypatch.setattr(heartbeats, "_node_memory", lambda: tmp_path / "memory")
    return tmp_path / "memory"


def opened(run_dir: Path, ranks: int, number: int = 1) -> list[Heartbeats]:
    found = [Heartbeats(run_dir, start_of_run(number), rank) for rank in range(ranks)]
    for one in found:
        one.open()
    return found


def files(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "logs/heartbeats/start-1").glob("*.json"))


def test_a_node_writes_one_file_and_another_rank_does_where_the_first_one_freezes(tmp_path: Path, memory: Path) -> None:
    ranks = opened(tmp_path, 3)
    for ticks in range(1, 3):
        for rank in (2, 0, 1):
            ranks[rank].write(beat(rank, ticks))
    assert files(tmp_path) == ["node-of-rank-0.json"]
    assert {rank: one.pid for rank, one in ranks[1].read().items()} == {0: 100, 1: 101, 2: 102}

    for ticks in range(3, 7):  # rank 0 is frozen
        for rank in (1, 2):
            ranks[rank].write(beat(rank, ticks))
    assert files(tmp_path) == ["node-of-rank-0.json", "node-of-rank-1.json"]
    # A rank of another node, which cannot see into this one's memory.
    for path in memory.rglob("*.json"):
        path.unlink()
    assert {rank: one.ticks for rank, one in ranks[2].read().items()} == {0: 2, 1: 6, 2: 5}

    for rank in (0, 1):  # it goes on: a suspended job
        ranks[rank].write(beat(rank, 7))
    assert files(tmp_path) == ["node-of-rank-0.json"]


def test_ranks_that_share_no_memory_write_a_file_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "_node_memory", lambda: tmp_path / "a file/of it")
    (tmp_path / "a file").touch()  # so that no folder can be made there
    ranks = opened(tmp_path, 2)
    for rank in (0, 1):
        ranks[rank].write(beat(rank, 1))
    assert files(tmp_path) == ["node-of-rank-0.json", "node-of-rank-1.json"]
    assert sorted(ranks[0].read()) == [0, 1]
    ranks[1].raise_alarm()
    assert ranks[0].alarm_raised()


def test_an_alarm_reaches_the_ranks_of_all_nodes(tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = opened(tmp_path, 2)
    (tmp_path / "other").mkdir()
    monkeypatch.setattr(heartbeats, "_node_memory", lambda: tmp_path / "other")
    there = [Heartbeats(tmp_path, start_of_run(1), rank) for rank in (2, 3)]
    for rank, one in enumerate([*here, *there]):
        one.open()
        one.write(beat(rank, 1))
    assert not any(one.alarm_raised() for one in [*here, *there])
    here[1].raise_alarm()
    assert not there[1].alarm_raised()  # it does not look into the run directory
    assert all(one.alarm_raised() for one in [*here, *there])


def test_nothing_is_left_after_a_good_end_and_an_earlier_start_goes(tmp_path: Path, memory: Path) -> None:
    for rank, one in enumerate(opened(tmp_path, 2)):
        one.write(beat(rank, 1))
    later = opened(tmp_path, 2, number=2)
    assert [path.name for path in (tmp_path / "logs/heartbeats").iterdir()] == ["start-2"]
    assert [path.name for path in memory.glob("*/*")] == ["start-2"]
    for rank, one in enumerate(later):
        one.write(beat(rank, 1))
    for one in later:
        one.close()
    assert not list(memory.iterdir())
    assert not list((tmp_path / "logs/heartbeats/start-2").iterdir())
