import subprocess
import sys

import pytest

SIGNAL_AT_SHUTDOWN = """
import os, signal
from pipeline.processes.signals import catch_stop_signals, ignore_stop_signals

class Last:
    def __del__(self):  # while modules are taken apart, after the interpreter has let go of the signals
        os.kill(os.getpid(), signal.{name})

catch_stop_signals()
os.kill(os.getpid(), signal.{name})
last = Last()
ignore_stop_signals()
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_during_the_shutdown_of_python_does_not_fail_what_is_done(name: str) -> None:
    code = SIGNAL_AT_SHUTDOWN.format(name=name)
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
    code = code.replace("\nignore_stop_signals()\n", "\n")
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode < 0
