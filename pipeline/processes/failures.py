"""Failures of the machine that a user can mend: a full disk, and too little memory."""

import contextlib
import errno
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from data_prep.contract.command_line import UserError
from pipeline.config import RunConfig
from pipeline.config_checks import needs_less_memory
from pipeline.processes.watchdog import Watchdog
from pipeline.processes.world import World


@contextlib.contextmanager
def full_disk_as_user_error() -> Iterator[None]:
    """A disk that takes no more is one line, wherever it is noticed."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        raise UserError(
            f"{error.filename or 'the run directory'} cannot be written ({error.strerror}): make room, then run the "
            "same command again to resume from the last checkpoint"
        ) from error


@contextlib.contextmanager
def no_memory_as_user_error(
    config: RunConfig, world: World, watchdog: Watchdog, device: torch.device
) -> Iterator[None]:
    """A device or host that has no more memory is one line, with what needs less, and a snapshot of a GPU's memory.

    Args:
        config: of the run.
        world: which process this is.
        watchdog: knows how far this process has come.
        device: of this process.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's are RuntimeErrors
        wanted = _wanted_memory(error)
        if wanted is None:
            raise
        advice = needs_less_memory(config, world.size, on_gpu=device.type == "cuda")
        where = f"rank {world.rank} ({device}) has no memory for {wanted} more {watchdog.place}"
        raise UserError(
            f"{where}: {advice}, then run the same command again" + _snapshot(Path(config.run_dir), world.rank, device)
        ) from error


def _wanted_memory(error: Exception) -> str | None:
    """How much could not be had, in words; None where the error is another one."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError):  # "Tried to allocate 2.00 GiB. GPU 0 has ..."
        found = re.search(r"Tried to allocate ([\d.]+ \w+)", text)
        return found[1] if found else "what comes next"
    if isinstance(error, MemoryError):
        return "what comes next"
    found = re.search(r"DefaultCPUAllocator: can't allocate memory: you tried to allocate (\d+) bytes", text)
    return f"{int(found[1]) / 2**30:.2f} GiB" if found else None


def _snapshot(run_dir: Path, rank: int, device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    path = run_dir / "logs" / f"memory-rank-{rank}.pickle"
    with contextlib.suppress(OSError, RuntimeError):  # the line matters more
        torch.cuda.memory._dump_snapshot(str(path))
        return f"; {path} has what takes the memory, for https://pytorch.org/memory_viz"
    return ""
