import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.stages.workers import Workers

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
