"""The moment from which a checkpoint counts, and which older ones are removed after it.

Rank 0 alone does this: it writes ``trainer.json`` and ``manifest.json``, flushes everything to disk and renames the
folder. Before the rename it makes sure that no newer start of the run has taken over.
"""

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from data_prep.contract.files import flush_to_disk, write_atomically
from pipeline.checkpoints.format import (
    TEMPORARY,
    SizeAndHash,
    TrainerState,
    as_json,
    manifest_text,
    size_and_hash,
    step_of,
)


def commit(
    temporary: Path,
    final: Path,
    state: TrainerState,
    files: Mapping[str, SizeAndHash],
    *,
    may_commit: Callable[[], bool],
) -> None:
    """Make a complete temporary folder the checkpoint ``final``, and the one that ``latest`` names.

    Args:
        temporary: holds the tensors, flushed to disk.
        final: its name as a checkpoint; one that is there already is replaced.
        state: for ``trainer.json``.
        files: size and hash of the files with the tensors, by name.
        may_commit: False where a newer start of the run has taken over.

    Raises:
        OSError: something cannot be written, or a newer start has taken over.
    """
    _write_durably(temporary / "trainer.json", as_json(dataclasses.asdict(state)))
    trainer_file = size_and_hash(temporary / "trainer.json")
    _write_durably(temporary / "manifest.json", manifest_text({**files, "trainer.json": trainer_file}))
    flush_to_disk(temporary)
    if not may_commit():
        raise OSError("a newer start of this run has taken over: nothing is saved by this one any more")
    if final.exists():  # the same step, saved before a resume from an earlier checkpoint
        _remove(final)
    temporary.rename(final)
    flush_to_disk(final.parent)
    flush_to_disk(final.parent.parent)  # the first checkpoint of a run has made the folder of them
    write_atomically(final.parent / "latest", final.name + "\n", durable=True)


def remove_superseded(checkpoints: Path, newest: int, keep_last: int, keep_every: int) -> None:
    """Remove the checkpoints that ``superseded`` names, as far as possible."""
    steps = [step for folder in checkpoints.glob("step-*") if (step := step_of(folder)) is not None]
    for step in superseded(steps, newest, keep_last, keep_every):
        with contextlib.suppress(OSError):  # the next save tries again
            _remove(checkpoints / f"step-{step:08d}")


def superseded(steps: Sequence[int], newest: int, keep_last: int, keep_every: int) -> list[int]:
    """The steps whose checkpoints are not kept once that of ``newest`` is committed.

    Steps after ``newest`` are those of a future that a resume has left, mostly because they are damaged:
    they neither count nor go.
    """
    if not keep_last:
        return []
    before = sorted(step for step in steps if step <= newest)[:-keep_last]
    return [step for step in before if not (keep_every and step % keep_every == 0)]


def _remove(folder: Path) -> None:
    """Remove a checkpoint so that no half of it is ever seen under its name."""
    aside = folder.with_name(f"{TEMPORARY}removed-{folder.name}-{time.time_ns()}")
    folder.rename(aside)
    shutil.rmtree(aside)


def _write_durably(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    flush_to_disk(path)
