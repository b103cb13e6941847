"""The checkpoints of a run as a table."""

import dataclasses
import datetime
from pathlib import Path

from data_prep.contract.command_line import UserError
from pipeline.checkpoints.format import CheckpointError, step_of
from pipeline.checkpoints.reading import checkpoint_folders, read_trainer_state, verify_checkpoint
from pipeline.runs.directory import read_run_record


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointList:
    """The checkpoints of a run, each verified."""

    table: str
    """One line per checkpoint, oldest first, under a heading."""
    problem: str
    """Which are damaged and what to do, on one line; empty where all are intact."""


def list_checkpoints(run_dir: Path) -> CheckpointList:
    """Verify all checkpoints of a run.

    Raises:
        UserError: no run, or nothing is saved yet.
    """
    read_run_record(run_dir)  # refuses what is no run
    folders = checkpoint_folders(run_dir / "checkpoints")[::-1]
    if not folders:
        raise UserError(f"{run_dir} has no checkpoint yet")
    lines, damaged = [f"{'step':>9}  {'saved':<19}  {'bytes':>15}  {'start':>5}  state"], []
    for folder in folders:
        size = sum(path.stat().st_size for path in folder.iterdir())
        attempt, problem = "?", ""
        try:
            verify_checkpoint(folder)
            attempt = str(read_trainer_state(folder).attempt)
        except CheckpointError as error:
            problem = str(error)
            damaged.append(folder.name)
        when = datetime.datetime.fromtimestamp(folder.stat().st_mtime).strftime("%Y-%m-%d %H:%M:%S")
        state = f"DAMAGED: {problem}" if problem else "intact"
        lines.append(f"{step_of(folder):>9,}  {when}  {size:>15,}  {attempt:>5}  {state}")
    problem = (
        f"{len(damaged)} of {len(folders)} checkpoints of {run_dir} are damaged ({', '.join(damaged)}): a resume "
        "passes them over; restore or remove them"
    )
    return CheckpointList(table="\n".join(lines), problem=problem if damaged else "")
