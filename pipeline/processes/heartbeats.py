"""Where the ranks of a run write how far they have come: one file a node, however many ranks it has.

Every rank writes into a folder in the memory of its node. The lowest rank there whose ticks go on, the node's leader,
copies all of that folder into ``logs/heartbeats`` of the run. So a frozen leader is followed by the next rank, and
ranks that share no memory (each in a container of its own) lead themselves.
"""

import contextlib
import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

from data_prep.contract.files import write_atomically
from pipeline.runs.attempts import Attempt

_STILL_AFTER = 3
"""Own ticks after which another rank whose ticks have not moved does not lead."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """How far a rank has come."""

    rank: int
    host: str
    pid: int
    moves: int
    """Places passed so far: the same ones in the same order on every rank."""
    place: str
    ticks: int
    """Goes up as long as the process lives and is not stopped."""


class Heartbeats:
    """Those of all ranks, as one rank writes and reads them.

    Args:
        run_dir: of the run.
        attempt: which start of the run.
        rank: of this process.
    """

    def __init__(self, run_dir: Path, attempt: Attempt, rank: int) -> None:
        self._rank = rank
        self._folder = run_dir / "logs/heartbeats" / f"start-{attempt.number}"
        # The lineage is in the name, since a folder that a crash left is there until the node forgets it.
        self._of_node = _node_memory() / f"narrowbert-{attempt.lineage_id}" / f"start-{attempt.number}"
        self._last_moved: dict[int, tuple[int, int]] = {}  # rank -> its ticks, and this rank's when they last moved
        self._leads = False

    def open(self) -> None:
        """Make the folders. Those of earlier starts are removed."""
        for folder in (self._folder, self._of_node) if self._rank == 0 else (self._of_node,):
            for earlier in folder.parent.glob("start-*"):
                if earlier != folder:
                    shutil.rmtree(earlier, ignore_errors=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # a full memory: then this rank leads itself
            self._of_node.mkdir(parents=True, exist_ok=True)

    def write(self, beat: Heartbeat) -> None:
        """Tell how far this rank has come, and as the leader of its node how far the others there have."""
        with contextlib.suppress(OSError):
            write_atomically(self._of_node / f"{self._rank}.json", json.dumps([dataclasses.asdict(beat)]))
        there = _read(self._of_node) | {self._rank: beat}
        led, self._leads = self._leads, self._rank == min(r for r in there if self._moves_on(there[r], beat.ticks))
        if self._leads:
            found = json.dumps([dataclasses.asdict(there[rank]) for rank in sorted(there)])
            write_atomically(self._published, found)
        elif led:
            self._published.unlink(missing_ok=True)

    def read(self) -> dict[int, Heartbeat]:
        """The newest of every rank that has written any."""
        return _read(self._folder, self._of_node)

    def raise_alarm(self) -> None:
        """Let all ranks know that nothing goes on."""
        for folder in (self._of_node, self._folder):
            with contextlib.suppress(OSError):
                (folder / "hang").touch()

    def alarm_raised(self) -> bool:
        """Whether a rank has raised the alarm. The leaders alone look into the run directory."""
        if self._leads and (self._folder / "hang").exists():
            self.raise_alarm()
            return True
        return (self._of_node / "hang").exists()

    def close(self) -> None:
        """This rank has ended well: what it has written goes."""
        self._published.unlink(missing_ok=True)
        (self._of_node / f"{self._rank}.json").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others are there still
            self._of_node.rmdir()
            self._of_node.parent.rmdir()

    @property
    def _published(self) -> Path:
        return self._folder / f"node-of-rank-{self._rank}.json"

    def _moves_on(self, other: Heartbeat, own_ticks: int) -> bool:
        ticks, since = self._last_moved.get(other.rank, (-1, own_ticks))
        if other.ticks != ticks:
            since = own_ticks
        self._last_moved[other.rank] = other.ticks, since
        return own_ticks - since < _STILL_AFTER


def _node_memory() -> Path:
    memory = Path("/dev/shm")
    return memory if memory.is_dir() else Path(tempfile.gettempdir())


def _read(*folders: Path) -> dict[int, Heartbeat]:
    found: dict[int, Heartbeat] = {}
    for path in (path for folder in folders for path in folder.glob("*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            for beat in (Heartbeat(**fields) for fields in json.loads(path.read_text(encoding="utf-8"))):
                if beat.rank not in found or beat.ticks > found[beat.rank].ticks:
                    found[beat.rank] = beat
    return found
