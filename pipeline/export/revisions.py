"""``narrowbert export --revisions``: the checkpoints of a run as revisions of one git folder.

A hub's ``from_pretrained(..., revision="step-1000")`` takes a tag or a branch of a model's git repository. Here each
checkpoint is a commit with such a tag, the oldest first, and ``main`` is the newest.
"""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from data_prep.contract.command_line import UserError
from pipeline.checkpoints.format import CheckpointError, step_of
from pipeline.checkpoints.reading import checkpoint_folders, verify_checkpoint
from pipeline.export.folder import check_output, whole_folder
from pipeline.export.from_run import export_run

_AUTHOR = ("-c", "user.name=NarrowBERT", "-c", "user.email=narrowbert@localhost")
"""Of the commits where git knows no other."""
_LARGE_FILES = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


def export_revisions(
    run_dir: Path, output: Path, pooling: str | None, model_type: str, *, encoder_only: bool
) -> list[str]:
    """Export every intact checkpoint of a run into one git folder.

    ``pooling``, ``model_type`` and ``encoder_only`` are those of ``write_export``.

    Returns:
        Lines on what a user should know.

    Raises:
        UserError: no git, no run or checkpoint, ``output`` exists already, or the model is none of ``model_type``.
    """
    if shutil.which("git") is None:
        raise UserError("--revisions needs git, which is not installed")
    check_output(output)
    steps, remarks = _intact_steps(run_dir)
    with whole_folder(output) as repository:
        _git(repository, "init", "--quiet", "--initial-branch", "main")
        has_large_files = _takes_large_files(repository)
        author = () if _knows_author(repository) else _AUTHOR
        for step in steps:
            # In a folder of the final name, which the card shows.
            export = repository / ".git" / "export" / output.resolve().name
            remarks += export_run(run_dir, export, pooling, model_type, step, encoder_only=encoder_only)
            _replace_files(repository, export)
            if has_large_files:
                (repository / ".gitattributes").write_text(_LARGE_FILES, encoding="utf-8")
            _git(repository, "add", "--all")
            _git(repository, *author, "commit", "--quiet", "--no-verify", "--no-gpg-sign", "--message", f"Step {step}")
            _git(repository, "tag", "--no-sign", f"step-{step}")
        shutil.rmtree(repository / ".git" / "export")
    if not has_large_files:
        remarks.append(
            "git-lfs is not installed: a hub that wants it for large files will refuse a push of this folder"
        )
    remarks.append(f"{len(steps)} revisions: {', '.join(f'step-{step}' for step in steps)}; main is the last")
    return list(dict.fromkeys(remarks))


def _intact_steps(run_dir: Path) -> tuple[list[int], list[str]]:
    """Steps of the intact checkpoints in order, and a line for every other one."""
    steps, problems = list[int](), list[str]()
    for folder in reversed(checkpoint_folders(run_dir / "checkpoints")):
        step = step_of(folder)
        assert step is not None
        try:
            verify_checkpoint(folder)
            steps.append(step)
        except CheckpointError as error:
            problems.append(f"checkpoint passed over: {error}")
    if not steps:
        raise UserError(f"{run_dir} has no intact checkpoint: {'; '.join(problems) or 'nothing is saved there yet'}")
    return steps, problems


def _replace_files(repository: Path, export: Path) -> None:
    for path in repository.iterdir():
        if path.name != ".git":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in export.iterdir():
        path.replace(repository / path.name)
    export.rmdir()


def _takes_large_files(repository: Path) -> bool:
    """Set git-lfs up for this folder alone; False where it is not installed."""
    found = subprocess.run(["git", "lfs", "version"], capture_output=True, check=False)
    if found.returncode:
        return False
    _git(repository, "lfs", "install", "--local")
    return True


def _knows_author(repository: Path) -> bool:
    command = ["git", "-C", str(repository), "config", "user.email"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _git(repository: Path, *words: str) -> None:
    done = subprocess.run(["git", "-C", str(repository), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(
            f"git {_first_word(words)} failed in {repository}: {done.stderr.strip() or done.stdout.strip()}"
        )


def _first_word(words: Sequence[str]) -> str:
    return next(word for word in words if not word.startswith("-") and "=" not in word)
