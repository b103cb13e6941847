"""The curves of runs, where a run that began at a checkpoint of another one continues that one's."""

import contextlib
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

from data_prep.contract.command_line import UserError
from pipeline.reports.history import RunHistory, read_history


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """A run as a part of a curve."""

    run: RunHistory
    """Its records."""
    last_step: int | None
    """The step at which the next phase began; None for the last phase."""
    seconds_before: float
    """Training time of the phases before it, as far as they are known."""

    def series(self, metric: str, axis: str) -> list[tuple[float, float]]:
        """(place, value) of a metric; the axis is ``steps``, ``tokens`` or ``training time`` in seconds."""
        run = self.run
        points = [point for point in run.points if self.last_step is None or point.step <= self.last_step]
        found = [point for point in points if metric in point.metrics]
        if axis == "training time":
            return sorted(
                (self.seconds_before + run.training_seconds(point.timestamp_ms), point.metrics[metric])
                for point in found
            )
        if axis == "tokens":
            return [(run.tokens_before + run.tokens(point.step), point.metrics[metric]) for point in found]
        return [(run.steps_before + point.step, point.metrics[metric]) for point in found]

    def seconds_after(self) -> float:
        """Training time of this phase and those before it."""
        times = [p.timestamp_ms for p in self.run.points if self.last_step is None or p.step <= self.last_step]
        return self.seconds_before + (self.run.training_seconds(max(times)) if times else 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """A run and all that it grew out of."""

    name: str
    """What to call it: all its runs, the oldest first."""
    phases: list[Phase]
    """The oldest first; the last is the run itself."""

    def series(self, metric: str, axis: str) -> list[tuple[float, float]]:
        """(place, value) of a metric over all phases; axes as in ``Phase.series``."""
        return [point for phase in self.phases for point in phase.series(metric, axis)]

    def seconds(self) -> float:
        """Training time of all phases."""
        return self.phases[-1].seconds_after()

    def seconds_to_loss(self, loss: float) -> float | None:
        """Training time at which the validation loss first was at most ``loss``, on the line between evaluations."""
        for before, after in itertools.pairwise(self.series("validation/loss", "training time")):
            if after[1] <= loss:
                share = 1.0 if before[1] <= loss else (before[1] - loss) / (before[1] - after[1])
                return before[0] + share * (after[0] - before[0])
        return None

    def has(self, run: RunHistory) -> bool:
        """Whether a run is one of the phases."""
        return any(phase.run.lineage_id == run.lineage_id for phase in self.phases)


def curve_of(run: RunHistory, name: str, others: Sequence[RunHistory] = ()) -> Curve:
    """The curve of a run. Runs that it grew out of are found among ``others``, or where they were when it began."""
    chain: list[tuple[RunHistory, int | None]] = [(run, None)]
    while (found := _parent(chain[0][0], others)) is not None and found[0].lineage_id not in _lineages(chain):
        chain.insert(0, found)
    phases: list[Phase] = []
    for part, last_step in chain:
        seconds = phases[-1].seconds_after() if phases else 0.0
        phases.append(Phase(run=part, last_step=last_step, seconds_before=seconds))
    names = [*(phase.run.name for phase in phases[:-1]), name]
    return Curve(name=" > ".join(names), phases=phases)


def drawn(curves: Sequence[Curve]) -> list[Curve]:
    """The curves that are no part of another one."""
    return [curve for curve in curves if not any(_contains(other, curve) for other in curves)]


def _contains(other: Curve, curve: Curve) -> bool:
    return len(other.phases) > len(curve.phases) and other.has(curve.phases[-1].run)


def _lineages(chain: Sequence[tuple[RunHistory, int | None]]) -> set[str]:
    return {run.lineage_id for run, _ in chain}


def _parent(run: RunHistory, others: Sequence[RunHistory]) -> tuple[RunHistory, int] | None:
    """The run that one began at, and the step there; None where there is none or its records are gone."""
    origin = run.origin
    if origin is None:
        return None
    found = next((other for other in others if other.lineage_id == origin["lineage_id"]), None)
    if found is None:
        with contextlib.suppress(UserError, OSError):
            there = read_history(Path(origin["path"]))
            found = there if there.lineage_id == origin["lineage_id"] else None
    return None if found is None else (found, origin["step"])
