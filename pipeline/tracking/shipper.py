"""The trainer's handle on the process that carries a run's records to MLflow."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from pipeline.tracking.description import LAST_SHIPMENT_S

_LOG = "logs/tracking.log"
_RESTART_AFTER_S = 10.0


class Shipper:
    """The shipper process as the trainer holds it. It ends by itself when the trainer dies.

    Args:
        run_dir: the run whose records it carries; ``logs/tracking.log`` there takes what it prints.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0

    def start(self) -> Self:
        """Start the process, or start it again after its end."""
        self._process, self._started = self._launch(), time.monotonic()
        return self

    def _launch(self) -> subprocess.Popen[bytes]:
        with (self._run_dir / _LOG).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "pipeline.tracking.shipping", str(self._run_dir)],
                stdin=subprocess.PIPE,  # closed by whatever ends the trainer: the sign to finish
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for the trainer; the shipper still sends the rest
            )

    def keep_alive(self) -> None:
        """Start it again if something has killed it; costs microseconds otherwise."""
        if time.monotonic() - self._started >= _RESTART_AFTER_S:
            self._restart_if_ended()

    def _restart_if_ended(self) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        self.start()

    def finish(self) -> bool:
        """Let it send the rest, for a bounded time. True if everything arrived."""
        self._restart_if_ended()  # however lately it was started: there is no later chance
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            return self._process.wait(LAST_SHIPMENT_S) == 0
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return False
