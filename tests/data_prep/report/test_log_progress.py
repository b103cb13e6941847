"""Lines of a stage at work: what there is to do, each interval how far it is, its end."""

import re
import time

import pytest

from data_prep.report.log_progress import LogProgress


def wait_for(lines: list[str], count: int) -> None:
    deadline = time.monotonic() + 10
    while len(lines) < count and time.monotonic() < deadline:
        time.sleep(0.005)
    assert len(lines) >= count, lines


def test_a_stage_tells_how_much_it_has_to_do_and_how_far_it_is() -> None:
    lines: list[str] = []
    with LogProgress(lines.append, interval_s=0.05) as progress:
        progress.start("map", 3_000_000_000, "B", done=1_000_000_000)
        wait_for(lines, 2)  # nothing is done yet: there is a sign of life all the same
        progress.advance(500_000_000, documents=4000)
        now = len(lines)
        wait_for(lines, now + 2)
        progress.note("something")
        progress.start("pack", 2, "tasks")
        progress.advance(2)
    assert lines[0] == "map: 2,000.0 MB to do, 1,000.0 MB done before"
    assert lines[1] == "map: 1,000.0 of 3,000.0 MB, 0:00:00 so far"
    at_work = next(line for line in lines if "left" in line)
    assert re.fullmatch(
        r"map: 1,500\.0 of 3,000\.0 MB, 0:00:00 so far, [\d.]+ MB/s, [\d,]+ documents/s, about 0:00:0\d left", at_work
    )
    assert "narrowbert-prep: something" in lines
    (end,) = [line for line in lines if line.startswith("map: 500.0 MB, 4,000 documents in ")]
    assert lines[lines.index(end) + 1] == "pack: 2 tasks to do"
    assert lines[-1].startswith("pack: 2 tasks in 0.")


def test_the_time_left_follows_from_what_this_start_has_done() -> None:
    lines: list[str] = []
    progress = LogProgress(lines.append)
    progress.start("pack", 1000, "tasks", done=900)
    progress.advance(10)
    assert progress._so_far(20.0) == "910 of 1,000 tasks, 0:00:20 so far, 0.5 tasks/s, about 0:03:00 left"
    progress.start("read", 0, "B")
    progress.advance(3_000_000)
    assert progress._so_far(2.0) == "3.0 MB, 0:00:02 so far, 1.5 MB/s"


def test_a_stage_that_fails_has_no_line_of_its_end() -> None:
    lines: list[str] = []

    def fail() -> None:
        with LogProgress(lines.append) as progress:
            progress.start("pack", 5, "tasks")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert lines == ["pack: 5 tasks to do"]
