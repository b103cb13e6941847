"""What a run keeps on disk of its metrics and events."""

import json
import resource
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.contract.command_line import UserError
from pipeline.runs.records import Spool, append_event, read_events, read_metrics, read_points


def test_a_point_is_written_once_and_keeps_its_time(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.write(1, {"train/loss": 2.5, "train/learning_rate": 0.1})
    spool.write(1, {"train/loss": 2.5, "validation/loss": 3.0})
    spool.close()
    before = (tmp_path / "metrics.jsonl").read_text()
    assert [point.metrics.keys() for point in read_points(tmp_path)] == [
        {"train/loss", "train/learning_rate"},
        {"validation/loss"},
    ]
    again = Spool(tmp_path)
    again.write(1, {"train/loss": 2.5, "train/learning_rate": 0.1})
    assert again.changed == []
    again.write(1, {"train/loss": 2.25})
    assert again.changed == ["train/loss of step 1 is 2.25, was 2.5 before the resume"]
    again.close()
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_other_arithmetic_or_nan_is_no_fault(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.write(1, {"train/loss": float("nan")})
    spool.write(2, {"train/loss": 2.0})
    spool.close()
    again, moved = Spool(tmp_path), Spool(tmp_path, may_differ_until={"train/loss": 2})
    again.write(1, {"train/loss": float("nan")})
    moved.write(2, {"train/loss": 2.0000001})
    assert again.changed == moved.changed == []
    before = Spool(tmp_path, may_differ_until={"train/loss": 1, "validation/loss": 2})
    before.write(2, {"train/loss": 2.0000001})
    assert before.changed == ["train/loss of step 2 is 2.0000001, was 2.0 before the resume"]


def test_a_tolerance_lets_a_rounding_pass_and_no_other_data(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.write(1, {"train/loss": 2.0})
    spool.close()
    again = Spool(tmp_path, tolerance=0.01)
    again.write(1, {"train/loss": 2.0001})
    assert again.changed == []
    again.write(1, {"train/loss": 2.1})
    assert again.changed == ["train/loss of step 1 is 2.1, was 2.0 before the resume"]


@given(sizes=st.lists(st.integers(min_value=0, max_value=120), max_size=12))
def test_lines_that_a_full_disk_does_not_take_wait_and_come_whole(
    sizes: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("full")
    spool = Spool(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write is an OSError then
    try:
        room = 0
        for step, size in enumerate(sizes, start=1):
            room += size  # a line has about 70 bytes: some are cut in the middle, and some wait behind others
            resource.setrlimit(resource.RLIMIT_FSIZE, (max(room, 1), limits[1]))
            spool.write(step, {"train/loss": 1.0 / step})
            assert read_metrics(folder).get("train/loss", []) == [(n, 1.0 / n) for n in range(1, 1 + lines(folder))]
            assert bool(spool.problem) == (lines(folder) < step)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    spool.sync()
    assert spool.problem == ""
    spool.close()
    assert read_metrics(folder).get("train/loss", []) == [(n, 1.0 / n) for n in range(1, 1 + len(sizes))]


def lines(folder: Path) -> int:
    return (folder / "metrics.jsonl").read_bytes().count(b"\n")


@given(cut=st.integers(min_value=0, max_value=400))
def test_a_kill_at_any_byte_costs_at_most_the_last_line(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("torn")
    spool = Spool(folder)
    for step in (1, 2, 3):
        spool.write(step, {"train/loss": 1.0 / step})
    spool.close()
    path = folder / "metrics.jsonl"
    whole = path.read_bytes()
    torn = whole[:cut]
    path.write_bytes(torn)
    complete = torn.count(b"\n")
    assert read_metrics(folder).get("train/loss", []) == [(step, 1.0 / step) for step in range(1, complete + 1)]
    assert path.read_bytes() == torn  # a reader must not touch the file: its writer may be alive
    resumed = Spool(folder)
    for step in (1, 2, 3):
        resumed.write(step, {"train/loss": 1.0 / step})
    resumed.close()
    assert resumed.changed == []
    assert read_metrics(folder)["train/loss"] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert path.read_bytes().startswith(whole[: torn.rfind(b"\n") + 1])


def test_a_start_that_was_taken_over_writes_where_nobody_reads(tmp_path: Path) -> None:
    stale = Spool(tmp_path)
    stale.write(1, {"train/loss": 1.0})
    newer = Spool(tmp_path)
    stale.write(2, {"train/loss": 9.0})
    newer.write(2, {"train/loss": 2.0})
    assert read_metrics(tmp_path)["train/loss"] == [(1, 1.0), (2, 2.0)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_start_that_was_taken_over_while_it_loaded_replaces_nothing(tmp_path: Path) -> None:
    newer = Spool(tmp_path)
    newer.write(1, {"train/loss": 1.0})

    def taken_over() -> None:
        raise UserError("a newer start")

    with pytest.raises(UserError, match="a newer start"):
        Spool(tmp_path, check_newest=taken_over)
    newer.write(2, {"train/loss": 2.0})
    assert read_metrics(tmp_path)["train/loss"] == [(1, 1.0), (2, 2.0)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_the_memory_does_not_grow_with_the_run(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for step in range(1000):
        spool.write(step, {"train/loss": 1.0})
    assert len(spool._before) + len(spool._newest[1]) < 3
    spool.close()


@pytest.mark.parametrize("line", ["{", "[]", '{"step": 1}', '{"step": 1, "timestamp_ms": 1, "metrics": 3}'])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    good = '{"step": 1, "timestamp_ms": 1, "metrics": {}}\n'
    (tmp_path / "metrics.jsonl").write_text(good + line + "\n" + good)
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 is damaged: remove the line"):
        read_metrics(tmp_path)


def test_events_survive_a_torn_line(tmp_path: Path) -> None:
    append_event(tmp_path, "start", 0, "start 1", hosts=["a", "b"], job_id=None)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"timestamp_ms": 1, "ki')
    append_event(tmp_path, "not deterministic", 7, "train/loss of step 7 differs", api_key="planted-by-test")
    events = read_events(tmp_path)
    assert [(event["kind"], event["step"]) for event in events] == [("start", 0), ("not deterministic", 7)]
    assert events[0]["hosts"] == ["a", "b"]
    assert "planted-by-test" not in (tmp_path / "events.jsonl").read_text()
    assert json.loads((tmp_path / "events.jsonl").read_text().splitlines()[1])["api_key"] == "***"
