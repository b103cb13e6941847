from pathlib import Path

import pytest

from pipeline.processes.watchdog import Watchdog
from pipeline.processes.world import SINGLE_PROCESS
from tests.pipeline.processes.test_heartbeats import start_of_run


def fail_once_there_is(beat: Path) -> None:
    while not beat.exists():
        pass
    raise OSError("broken")


def test_the_heartbeat_goes_after_a_good_end_and_stays_after_an_error(tmp_path: Path) -> None:
    beat = tmp_path / "logs/heartbeats/start-1/node-of-rank-0.json"
    watchdog = Watchdog(tmp_path, SINGLE_PROCESS, start_of_run(1), timeout_s=1.0)
    with pytest.raises(OSError, match="broken"), watchdog:
        fail_once_there_is(beat)
    assert beat.exists()  # the other ranks name what this one did last
    watchdog.stop()
    assert not beat.exists()
    with Watchdog(tmp_path, SINGLE_PROCESS, start_of_run(2), timeout_s=1.0):
        assert not beat.parent.exists()  # folders of earlier starts are removed
        later = tmp_path / "logs/heartbeats/start-2/node-of-rank-0.json"
        while not later.exists():
            pass
    assert not later.exists()
