"""What rank 0 writes down of a training: metrics, events, and the process that carries them to MLflow."""

import contextlib
import logging
import os
import shlex
import socket
from collections import deque
from pathlib import Path

from pipeline.config import RunConfig
from pipeline.data.mixture import Mixture
from pipeline.processes.ranks import Ranks
from pipeline.processes.stragglers import STRAGGLER_STEPS, OwnTime, Stragglers
from pipeline.runs.attempts import Attempt, is_newest_attempt, taken_over
from pipeline.runs.directory import DONE, schedule_changes, write_configuration
from pipeline.runs.records import Event, Spool, append_event, new_event, write_event
from pipeline.tracking.description import describe_run
from pipeline.tracking.shipper import Shipper
from pipeline.training.gauges import Gauges
from pipeline.training.terminal import Progress

log = logging.getLogger("narrowbert")

TOLERANCE_ON_CUDA = 0.01
"""By which share a loss may differ from the one before a resume: kernels there add in an order that changes."""

Points = dict[int, dict[str, float]]
"""Metrics by name, by step."""


class Records:
    """The records of one start of a run. Every rank has one; only rank 0's writes anything.

    Args:
        config: of the run.
        attempt: which start of the run this is.
        ranks: this process among the others.
        gauges: read at each log.
        own_time: of this rank, compared with the others' at each log.
    """

    def __init__(self, config: RunConfig, attempt: Attempt, ranks: Ranks, gauges: Gauges, own_time: OwnTime) -> None:
        self.run_dir = Path(config.run_dir)
        self._config, self._attempt, self._ranks = config, attempt, ranks
        self._gauges, self._own_time, self._stragglers = gauges, own_time, Stragglers()
        self._spool: Spool | None = None
        self._shipper: Shipper | None = None
        self._hosts: list[str] = []
        self._unwritten_events: deque[Event] = deque()
        self._problem = ""
        self._has_changed = False

    def open(self, shards: Mixture, step: int, device: str) -> None:
        """Describe this start, which begins after ``step`` steps; every rank calls this."""
        hosts = self._hosts = self._ranks.gather(socket.gethostname())
        if self._ranks.is_main:
            self._check_newest()  # a newer start may have registered while this one was loading
            if changes := schedule_changes(self._config):
                append_event(self.run_dir, "schedule changed", step, ", ".join(changes))
            write_configuration(self._config, shards)
            (self.run_dir / DONE).unlink(missing_ok=True)  # of a finished run that was given more steps
            self._spool = Spool(
                self.run_dir,
                may_differ_until=self._attempt.may_differ_until,
                check_newest=self._check_newest,
                tolerance=TOLERANCE_ON_CUDA if device.startswith("cuda") else 0.0,
            )
            world_size, number = self._ranks.world.size, self._attempt.number
            append_event(
                self.run_dir, "start", step, f"start {number}, {world_size} processes",
                attempt=number, hosts=list(dict.fromkeys(hosts)), job_id=os.environ.get("SLURM_JOB_ID"),
            )  # fmt: skip
            if self._config.tracking.enabled:
                describe_run(self.run_dir, self._config, shards, self._attempt, world_size=world_size, device=device)
                self._shipper = Shipper(self.run_dir).start()
        self.progress = Progress(self._config.training.train_steps, step, is_main=self._ranks.is_main)

    def follow(self, config: RunConfig, step: int) -> None:
        """Go on under another configuration, of which only the end of the run differs."""
        self._config = config
        self.progress.close()
        self.progress = Progress(config.training.train_steps, step, is_main=self._ranks.is_main)

    def event(self, kind: str, step: int, text: str) -> None:
        """Record that something happened to the run; what the disk does not take is written at a later log."""
        if self._ranks.is_main:
            self._unwritten_events.append(new_event(kind, step, text))
            self._write_events()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Record metrics of a step; a loss that a resume should have repeated, and has not, is reported."""
        if self._spool is not None:
            self._spool.write(step, metrics)
            self._report_changes(step)
            self._report_problem(step)

    def has(self, step: int, metric: str) -> bool:
        """Whether an earlier start has recorded this; the same answer on every rank."""
        return self._ranks.gather(self._spool is not None and self._spool.has(step, metric))[0]

    def sync(self) -> None:
        """Have the metrics survive a loss of power."""
        if self._spool is not None:
            self._spool.sync()

    def log(self, step: int, points: Points) -> None:
        """Write and show the metrics of a log after ``step`` steps; every rank calls this."""
        own_seconds: list[float] = []
        if self._own_time.steps >= STRAGGLER_STEPS:
            own_seconds = self._ranks.gather_number(self._own_time.mean_and_reset())
        if self._spool is None:
            return
        self._check_newest()
        last = points[step]
        last |= self._gauges.read(step, len(points), last["train/step_seconds"])
        if len(own_seconds) > 1:
            last["train/straggler_ratio"] = self._straggler_ratio(step, own_seconds, last["train/step_seconds"])
        for point, metrics in points.items():
            self._spool.write(point, metrics)
        self.progress.show(step, last)
        self._report_changes(step)
        self._report_problem(step)
        self._write_events()
        if self._shipper is not None:
            with contextlib.suppress(OSError):  # its log on a full disk; the next log tries again
                self._shipper.keep_alive()

    def close(self) -> None:
        """Close the files; what MLflow did not get stays on disk.

        Raises:
            UserError: the disk does not take what is left.
        """
        self._write_events()
        if self._spool is not None:
            self._spool.close()
        if self._shipper is not None and not self._shipper.finish():
            log.warning(
                "MLflow did not get all metrics (see %s): they are kept, send them with: narrowbert sync %s",
                self.run_dir / "logs/tracking.log", shlex.quote(str(self.run_dir)),
            )  # fmt: skip

    def _check_newest(self) -> None:
        """End a start that a newer one of the run has taken over: nothing of its own may be written any more."""
        if not is_newest_attempt(self.run_dir, self._attempt.number):
            raise taken_over(self.run_dir, self._attempt.number)

    def _straggler_ratio(self, step: int, own_seconds: list[float], step_seconds: float) -> float:
        """Slowest over median own time; a rank that stays behind is named."""
        ratio, slowest = self._stragglers.update(own_seconds, step_seconds)
        if slowest is not None:
            text = (
                f"rank {slowest} on {self._hosts[slowest]} takes {own_seconds[slowest]:.3g} s of its own a step, "
                f"{ratio:.1f} times the median rank's"
            )
            log.warning("slow: %s", text)
            self.event("straggler", step, text)
        return ratio

    def _report_changes(self, step: int) -> None:
        """The first loss alone: where one differs, all that follow it do."""
        assert self._spool is not None
        if self._spool.changed and not self._has_changed:
            self._has_changed = True
            text = f"{self._spool.changed[0]} (others that follow are not listed)"
            log.warning("not deterministic: %s", text)
            self.event("not deterministic", step, text)
        self._spool.changed.clear()

    def _report_problem(self, step: int) -> None:
        """Say when the disk takes no more metrics, and when it takes them again."""
        assert self._spool is not None
        before, self._problem = self._problem, self._spool.problem
        if self._problem and not before:
            log.warning(
                "step %d  metrics.jsonl cannot be written (%s): metrics are kept in memory, and every log tries again",
                step, self._problem,
            )  # fmt: skip
            self.event("metrics not written", step, self._problem)
        elif before and not self._problem:
            log.info("step %d  metrics.jsonl is written again, with all that was kept", step)

    def _write_events(self) -> None:
        with contextlib.suppress(OSError):
            while self._unwritten_events:
                write_event(self.run_dir, self._unwritten_events[0])
                self._unwritten_events.popleft()
