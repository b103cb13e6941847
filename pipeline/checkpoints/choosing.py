"""Which checkpoint all ranks take: the newest intact one, of which each has read a share."""

from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

from pipeline.checkpoints.format import CheckpointError
from pipeline.checkpoints.reading import verify_checkpoint
from pipeline.processes.world import World


def choose_intact(folders: Sequence[Path], world: World) -> tuple[Path | None, list[str]]:
    """The first of some checkpoints that is intact, and what is wrong with those before it; every rank calls this.

    Args:
        folders: the newest first, the same on every rank.
        world: which of the processes this is.
    """
    problems: list[str] = []
    for folder in folders:
        problem = _problem_of(folder, world)
        if not problem:
            return folder, problems
        problems.append(problem)
    return None, problems


def _problem_of(folder: Path, world: World) -> str:
    """What is wrong with a checkpoint, on every rank; each has read a share of its files."""
    problem = ""
    try:
        verify_checkpoint(folder, world.rank, world.size)
    except (CheckpointError, OSError) as error:
        problem = str(error)
    found: list[str | None] = [None] * world.size
    dist.all_gather_object(found, problem)
    return next((text for text in found if text), "")
