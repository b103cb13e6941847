"""Validation loss by training time: which configuration gets first to where the control ends.

    python benchmarks/time_to_loss.py benchmarks/time_to_loss.yaml --shards shards --output time_to_loss --record

The file names the contestants, the control first, each with options of `narrowbert train`; `seeds` are trained for
each of them, or those of `seeds:` beside its options. All read the same rows in the same order and are evaluated on
the same validation positions. They train in turn, a slice of time each, so that what else the machine does meets all
of them alike: a slice ends with SIGTERM, which saves, and the next one resumes. With `--at_once 2` two train side by
side, each on its share of the cores. The same command goes on where it was stopped. Time is that of the steps as the
run has logged it, without starts, evaluations and checkpoints.

Writes `points/NAME-SEED.tsv` (step, tokens, seconds, loss, accuracy of every evaluation) and `curves.svg`, and prints
the table.
"""

import argparse
import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import results
import yaml
from matplotlib.figure import Figure  # comes with mlflow

from pipeline.runs.records import Point, read_points

REQUEUE = 85
"""Exit code of a run that was asked to stop and can go on."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run."""

    step: int
    tokens: float
    seconds: float
    loss: float
    accuracy: float


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One configuration with one seed."""

    name: str
    seed: int
    options: dict[str, Any]
    run_dir: Path

    @property
    def label(self) -> str:
        return f"{self.name}-{self.seed}"

    @property
    def is_done(self) -> bool:
        return (self.run_dir / "DONE").exists()

    def train(self, shards: Path, processes: int, threads: int, seconds: float) -> None:
        """Train for a slice of time, or to the end."""
        options = {"data.path": str(shards), "training.seed": self.seed, "tracking.enabled": False, **self.options}
        words = [word for key, value in options.items() for word in (f"--{key}", _word(value))]
        command = [
            sys.executable, "-P", "-m", "pipeline", "train", "--run_dir", str(self.run_dir), "--processes",
            str(processes), *words,
        ]  # fmt: skip
        self.run_dir.parent.mkdir(parents=True, exist_ok=True)
        with self.run_dir.with_suffix(".log").open("a") as log:
            environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)
                code = process.wait(600)
        if code not in (0, REQUEUE):
            raise SystemExit(f"{self.label}: exit code {code}, see {self.run_dir.with_suffix('.log')}")

    def evaluations(self) -> list[Evaluation]:
        """Every evaluation so far, in order."""
        return evaluations(read_points(self.run_dir))


def evaluations(points: Sequence[Point]) -> list[Evaluation]:
    """The evaluations of a run's points, with the time of the steps before them."""
    found: dict[int, Evaluation] = {}
    seconds, logged, tokens = 0.0, 0, 0.0
    for point in sorted(points, key=lambda point: point.step):
        metrics = point.metrics
        if "train/step_seconds" in metrics:
            seconds += metrics["train/step_seconds"] * (point.step - logged)
            logged = point.step
        tokens = metrics.get("train/tokens", tokens)  # an evaluation that a resume caught up with has none
        if "validation/loss" in metrics:
            loss, accuracy = metrics["validation/loss"], metrics["validation/masked_accuracy"]
            found[point.step] = Evaluation(point.step, tokens, seconds, loss, accuracy)
    return list(found.values())


def at_loss(curve: Sequence[Evaluation], loss: float, axis: str) -> float | None:
    """Where on an axis (seconds or tokens) a curve first comes down to a loss, between evaluations on their line."""
    for before, after in itertools.pairwise(curve):
        if after.loss <= loss:
            share = 1.0 if before.loss <= loss else (before.loss - loss) / (before.loss - after.loss)
            return getattr(before, axis) + share * (getattr(after, axis) - getattr(before, axis))
    return None


def loss_at(curve: Sequence[Evaluation], place: float, axis: str) -> float | None:
    """The loss of a curve at a place on an axis; its last one where it ended before."""
    for before, after in itertools.pairwise(curve):
        start, end = getattr(before, axis), getattr(after, axis)
        if start <= place < end:
            return before.loss + (place - start) / (end - start) * (after.loss - before.loss)
    return curve[-1].loss if getattr(curve[-1], axis) <= place else None


def table(contestants: Sequence[Contestant], control: str) -> list[dict[str, str]]:
    """One row a contestant, held against the control of the same seed, or of its first one."""
    curves = {(one.name, one.seed): one.evaluations() for one in contestants if one.is_done}
    controls = {seed: curve for (name, seed), curve in curves.items() if name == control}
    rows = []
    for (name, seed), curve in curves.items():
        last = curve[-1]
        row = {
            "contestant": name,
            "seed": str(seed),
            "seconds": f"{last.seconds:,.0f}",
            "tokens": f"{last.tokens:,.0f}",
        }
        row |= {"final loss": f"{last.loss:.3f}", "masked accuracy": f"{last.accuracy:.3f}"}
        if controls:
            against = controls.get(seed, next(iter(controls.values())))
            row |= _held_against(curve, against)
        rows.append(row)
    return rows


def _held_against(curve: Sequence[Evaluation], control: Sequence[Evaluation]) -> dict[str, str]:
    end = control[-1]
    shares = [(axis, at_loss(curve, end.loss, axis)) for axis in ("seconds", "tokens")]
    cells = {
        f"{axis} to the control's loss": "not reached" if place is None else f"{place / getattr(end, axis):.2f} of its"
        for axis, place in shares
    }
    for axis, what in (("seconds", "time"), ("tokens", "tokens")):
        loss = loss_at(curve, getattr(end, axis), axis)
        cells[f"loss at its {what}"] = "" if loss is None else f"{loss:.3f}"
    return cells


def write_points(contestants: Sequence[Contestant], output: Path) -> None:
    """The raw points as small text, and their picture."""
    folder = output / "points"
    folder.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="seconds of training", ylabel="validation loss, nats")
    for contestant in contestants:
        if not contestant.run_dir.is_dir():
            continue
        curve = contestant.evaluations()
        text = ["step\ttokens\tseconds\tloss\taccuracy"]
        text += [f"{e.step}\t{e.tokens:.0f}\t{e.seconds:.1f}\t{e.loss:.4f}\t{e.accuracy:.4f}" for e in curve]
        (folder / f"{contestant.label}.tsv").write_text("\n".join(text) + "\n")
        later = [evaluation for evaluation in curve if evaluation.step]  # at step 0 nothing is learnt
        axes.plot([e.seconds for e in later], [e.loss for e in later], label=contestant.label)
    axes.legend()
    figure.savefig(output / "curves.svg", metadata={"Date": None})


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def read_contestants(file: Path, output: Path, seeds: Sequence[int]) -> list[Contestant]:
    """What the file asks for, in its order."""
    content = yaml.safe_load(file.read_text())
    found = []
    for name, own in content["contestants"].items():
        options = content.get("common", {}) | own
        own_seeds = options.pop("seeds", seeds)
        found += [Contestant(name, seed, options, output / "runs" / f"{name}-{seed}") for seed in own_seeds]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contestants", type=Path, help="YAML file")
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--only", nargs="+", help="names to train now")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--at_once", type=int, default=1, help="how many train side by side")
    parser.add_argument("--slice", type=float, default=300.0, help="seconds that each trains in turn")
    parser.add_argument("--hours", type=float, help="end after so long, to go on later")
    parser.add_argument("--record", action="store_true", help="append the table to results/time_to_loss.jsonl")
    chosen = parser.parse_args()
    contestants = read_contestants(chosen.contestants, chosen.output, chosen.seeds)
    control = contestants[0].name
    ends = time.monotonic() + 3600 * chosen.hours if chosen.hours else float("inf")
    threads = max(1, len(os.sched_getaffinity(0)) // (chosen.processes * chosen.at_once))

    def train(contestant: Contestant) -> None:
        if time.monotonic() >= ends:
            return
        contestant.train(chosen.shards, chosen.processes, threads, chosen.slice)
        for last in contestant.evaluations()[-1:]:
            print(f"{contestant.label}: step {last.step}, loss {last.loss:.3f}", flush=True)

    waiting = [one for one in contestants if not chosen.only or one.name in chosen.only]
    with ThreadPoolExecutor(chosen.at_once) as pool:
        while time.monotonic() < ends and (waiting := [one for one in waiting if not one.is_done]):
            list(pool.map(train, waiting))
            write_points(contestants, chosen.output)
    write_points(contestants, chosen.output)
    rows = table(contestants, control)
    for row in rows:
        print(" | ".join(f"{name}: {cell}" for name, cell in row.items()))
    if chosen.record:
        results.record("time_to_loss", "table-1", rows)


if __name__ == "__main__":
    main()
