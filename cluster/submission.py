"""The folder ``submission/`` of a run, and ``OUTPUT.submission`` beside shards: what was sent, as which jobs.

``job.sh`` the script, ``config.yaml`` the resolved configuration, ``packages.txt`` the versions of everything
installed, ``submission.json`` when, from where and by which command, ``jobs`` one line a job (its id, and for
preparation the stage), ``logs/`` the output of the jobs, ``codes/`` each rank's exit code, ``cancelled`` while nothing
is to go on. Of preparation, a file an element: ``crashes/STAGE-PART`` how often it crashed since a task of it was done,
``failed/STAGE-PART`` which of its tasks failed, and why.
"""

import dataclasses
import importlib.metadata
import json
import shutil
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from cluster.slurm import Job, find_jobs
from data_prep.contract.command_line import UserError, one_line

JOB_SCRIPT = "job.sh"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentJob:
    """A line of ``jobs``."""

    job_id: str
    """Slurm's number."""
    stage: str
    """Of preparation; empty for a training job."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Submission:
    """The folder."""

    folder: Path
    """RUN_DIR/submission or OUTPUT.submission; absolute."""

    @property
    def script(self) -> Path:
        """The batch script."""
        return self.folder / JOB_SCRIPT

    @property
    def config_file(self) -> Path:
        """The snapshot of the configuration."""
        return self.folder / "config.yaml"

    @property
    def logs(self) -> Path:
        """Where the jobs write."""
        return self.folder / "logs"

    @property
    def cancelled(self) -> Path:
        """While this file is there, a job of this folder neither starts nor goes on."""
        return self.folder / "cancelled"

    def crashes(self, stage: str, part: int) -> Path:
        """Number of crashes of an element of preparation since one of its tasks was done."""
        return self.folder / "crashes" / f"{stage}-{part}"

    def failed(self, stage: str, part: int) -> Path:
        """What failed in an element, a line each; gone when it has ended well."""
        return self.folder / "failed" / f"{stage}-{part}"

    def failures(self) -> list[str]:
        """Everything that has failed and is not done since, a line each.

        Raises:
            UserError: a file cannot be read.
        """
        lines: list[str] = []
        try:
            for path in sorted((self.folder / "failed").glob("*-*")):
                lines += path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
        return lines

    def jobs(self) -> list[SentJob]:
        """Every job so far, oldest first.

        Raises:
            UserError: the file cannot be read.
        """
        path = self.folder / "jobs"
        try:
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        except (OSError, ValueError) as error:
            raise UserError(one_line(f"{path} cannot be read: {error}")) from error
        parts = [line.split() for line in lines if line.strip()]
        if any(not part[0].isdigit() for part in parts):
            raise UserError(f"{path} is damaged: a line holds no job id")
        return [SentJob(job_id=part[0], stage=part[1] if len(part) > 1 else "") for part in parts]

    def add_job(self, job_id: str, stage: str = "") -> None:
        """Record a job that was sent."""
        with (self.folder / "jobs").open("a", encoding="utf-8") as file:
            file.write(f"{job_id} {stage}".rstrip() + "\n")

    def write(self, script: str, config: Mapping[str, object], *, private: bool = False) -> None:
        """Write script, configuration and package versions; ``private``: a configuration that nobody else may read.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            self.script.write_text(script, encoding="utf-8")
            self.config_file.unlink(missing_ok=True)
            self.config_file.touch(mode=0o600 if private else 0o666)
            self.config_file.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
            (self.folder / "packages.txt").write_text("\n".join(_packages()) + "\n", encoding="utf-8")
            record = {
                "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "host": socket.gethostname(),
                "folder": str(Path.cwd()),
                "python": sys.executable,
            }
            (self.folder / "submission.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            self.cancelled.unlink(missing_ok=True)
            for name in ("crashes", "failed"):
                shutil.rmtree(self.folder / name, ignore_errors=True)
                (self.folder / name).mkdir()
        except OSError as error:
            raise UserError(f"cannot write {error.filename or self.folder}: {error.strerror}") from error

    def active_jobs(self) -> list[Job]:
        """The jobs of this folder that wait, run or will run again.

        Raises:
            UserError: Slurm does not answer.
        """
        return [job for job in find_jobs([job.job_id for job in self.jobs()]) if job.is_active]


def submission_of_run(run_dir: Path) -> Submission:
    """The folder of a training run."""
    return Submission(folder=run_dir.absolute() / "submission")


def submission_of_shards(output: Path) -> Submission:
    """The folder of a preparation, beside its shards."""
    output = output.absolute()
    return Submission(folder=output.with_name(output.name + ".submission"))


def find_submission(folder: Path) -> Submission:
    """The submission of a run directory or of a shard folder.

    Raises:
        UserError: nothing was ever sent for it.
    """
    for found in (submission_of_run(folder), submission_of_shards(folder)):
        if (found.folder / "jobs").exists():
            return found
    raise UserError(f"nothing was sent to Slurm for {folder}: it has no submission/jobs (narrowbert-submit train)")


def remove_if_empty(submission: Submission) -> None:
    """Take back what ``write`` made, where no job was ever sent from the folder."""
    if not (submission.folder / "jobs").exists():
        shutil.rmtree(submission.folder, ignore_errors=True)


def check_no_active_job(submission: Submission) -> None:
    """Refuse a second job for one folder.

    Raises:
        UserError: one waits or runs, or Slurm does not answer.
    """
    if not submission.jobs():
        return
    active = submission.active_jobs()
    if active:
        raise UserError(
            f"job {active[0].job_id} ({active[0].state}) is there for {submission.folder.parent} already: "
            "wait for it, or end it with narrowbert-submit cancel"
        )


def _packages() -> Sequence[str]:
    found = {(d.metadata["Name"] or "?", d.version) for d in importlib.metadata.distributions()}
    return [f"{name}=={version}" for name, version in sorted(found, key=lambda pair: pair[0].lower())]
