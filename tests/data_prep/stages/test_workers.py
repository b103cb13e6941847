import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.stages.workers import WorkerKilled, Workers

SLEEPERS = """
import time
from data_prep.stages.workers import Workers

with Workers(2) as workers:
    list(workers.run(time.sleep, [60, 60, 60]))
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_workers_end_with_a_killed_parent():
    parent = subprocess.Popen([sys.executable, "-c", SLEEPERS])
    try:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        deadline = time.monotonic() + 60
        workers = []
        while len(workers) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
            started = children.read_text().split()
            workers = [pid for pid in started if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(workers) == 2
        time.sleep(1)  # their initializer runs after the start
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))


def test_results_come_in_order_whatever_the_number_of_workers():
    items = list(range(20))
    for count in (1, 3):
        with Workers(count) as workers:
            assert list(workers.run(str, items)) == [str(item) for item in items]


def run_and_log(item):
    """Append the item to a file; be killed at some items, once or always."""
    folder, number, once, always = item
    with (folder / str(number)).open("a") as file:
        file.write("run ")
    if number in always or (number in once and len((folder / str(number)).read_text().split()) == 1):
        time.sleep(0.3)  # the others have ended then
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def runs(folder, number):
    return len((folder / str(number)).read_text().split())


def test_killed_workers_are_fewer_then_and_every_item_is_done(tmp_path):
    items = [(tmp_path, number, {2, 5, 9}, set()) for number in range(14)]
    notes = []
    with Workers(4, note=notes.append) as workers:
        assert list(workers.run(run_and_log, items)) == list(range(14))
        assert list(workers.run(str, [1, 2, 3])) == ["1", "2", "3"]
    assert [note.rsplit(" ", 1)[1] for note in notes] == ["2", "1", "1"][: len(notes)]
    assert notes
    assert sum(runs(tmp_path, number) for number in range(14)) < 14 + 3 * 4


def test_what_had_ended_before_a_kill_does_not_run_again(tmp_path):
    items = [(tmp_path, number, {6}, set()) for number in range(8)]
    with Workers(2, note=lambda _: None) as workers:
        assert list(workers.run(run_and_log, items)) == list(range(8))
    assert [runs(tmp_path, number) for number in (0, 1, 2, 3)] == [1, 1, 1, 1]
    assert runs(tmp_path, 6) == 2


def test_an_item_that_always_kills_ends_in_one_line_when_it_ran_alone_twice(tmp_path):
    items = [(tmp_path, number, set(), {4}) for number in range(8)]
    notes = []
    results = []
    with Workers(3, note=notes.append) as workers, pytest.raises(WorkerKilled, match=r"give .* more memory"):
        results.extend(workers.run(run_and_log, items))
    assert results == [0, 1, 2, 3]
    assert runs(tmp_path, 4) == 3
    assert len(notes) == 2


def test_workers_apart_say_at_once_that_one_was_killed(tmp_path):
    items = [(tmp_path, number, {0}, set()) for number in range(3)]
    with Workers(1, apart=True) as workers, pytest.raises(WorkerKilled):
        list(workers.run(run_and_log, items))
    assert runs(tmp_path, 0) == 1
