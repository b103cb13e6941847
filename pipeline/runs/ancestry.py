"""Where weights come from: the checkpoint of another run that a run began at, those of an average. Imports no torch."""

from pathlib import Path
from typing import TypedDict

STEP_FOLDER = "step-"
"""How the name of a checkpoint begins."""


class Averaged(TypedDict):
    """What is recorded of a checkpoint that weights come from: one of those that an average is of."""

    lineage_id: str
    """Its run, over all its starts."""
    run: str
    """That run's directory's last part."""
    path: str
    """The directory, absolute, at the time."""
    step: int
    """Steps that it had done."""
    sha256: str
    """Of the checkpoint's manifest, which holds size and hash of every file."""


class Parent(Averaged):
    """What a run records of the checkpoint of another run that it began at."""

    moments: bool
    """Whether the optimizer's moments were taken as well."""
    first_row: int
    """Place in the order of the rows at which this run begins: the parent's where the order is the same, or 0."""
    steps: int
    """Steps of all runs before this one, up to that checkpoint."""
    rows: int
    """Rows that they trained on."""
    tokens: int
    """Tokens of those rows."""


def split_source(source: str) -> tuple[Path, int | None]:
    """``RUN``, ``RUN@STEP`` or a checkpoint's folder as a run's directory and a step; None: its newest one."""
    path = Path(source)
    if path.parent.name == "checkpoints" and (step := path.name.removeprefix(STEP_FOLDER)).isdigit():
        return path.parent.parent, int(step)
    before, _, step = source.rpartition("@")
    if before and step.isdigit() and not path.exists():
        return Path(before), int(step)
    return path, None


def checkpoint_of(parent: Parent) -> Path:
    """The folder of the checkpoint that a run began at."""
    return Path(parent["path"]) / "checkpoints" / f"{STEP_FOLDER}{parent['step']:08d}"
