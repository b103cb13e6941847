"""``narrowbert-submit status | logs | cancel``: from Slurm where it answers, and from the folder in any case."""

import datetime
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cluster import slurm
from cluster.submission import Submission, find_submission
from pipeline.runs.directory import read_run_config, read_run_record
from pipeline.runs.records import read_metrics

_POLL_S = 0.5
_ASK_SLURM_S = 10.0
_MOST_FAILURES = 10
_RANK_LOG = re.compile(r"rank-(\d+)\.log")


def status(folder: Path) -> str:
    """State, restarts and place of the jobs, and how far the run is.

    Raises:
        UserError: nothing was sent for the folder, or its records are damaged.
    """
    submission = find_submission(folder)
    lines = [("folder", str(folder)), *_job_lines(submission)]
    if submission.cancelled.exists():
        lines.append(("cancelled", "nothing goes on by itself"))
    if submission.folder.name == "submission":
        lines += _run_lines(folder)
    elif (folder / "manifest.json").exists():
        lines.append(("state", "done: the shards are there"))
    else:
        lines += _failure_lines(submission)
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _job_lines(submission: Submission) -> list[tuple[str, str]]:
    sent = submission.jobs()
    stages = {job.job_id: job.stage for job in sent}
    try:
        jobs = slurm.find_jobs(list(dict.fromkeys(job.job_id for job in sent)))
    except slurm.SlurmError as error:
        return [(f"job {sent[-1].job_id}", f"not known: {error}")]
    lines = []
    for job in jobs:
        stage = stages.get(job.job_id.split("_")[0], "")
        parts = [job.state + (f" ({job.reason})" if job.reason else "")]
        parts += [f"on {job.nodes}"] if job.nodes else []
        limit = f" of {job.time_limit}" if job.time_limit else ""  # accounts fill up some seconds late
        parts += [job.elapsed + limit] if job.elapsed else []
        parts += [f"{job.restarts} restarts"] if job.restarts is not None else []
        parts += [f"exit code {job.exit_code}"] if not job.is_active and job.exit_code else []
        lines.append((f"{stage} {job.job_id}".strip() if stage else f"job {job.job_id}", ", ".join(parts)))
    if not lines:
        lines.append((f"job {sent[-1].job_id}", "ended; Slurm keeps no record of it any more"))
    return lines


def _failure_lines(submission: Submission) -> list[tuple[str, str]]:
    failures = submission.failures()
    lines = [("failed", line) for line in failures[:_MOST_FAILURES]]
    if len(failures) > _MOST_FAILURES:
        lines.append(("failed", f"and {len(failures) - _MOST_FAILURES} more, in {submission.folder / 'failed'}"))
    if lines:
        lines.append(("to go on", "mend it and give the same narrowbert-submit prep again: what is done stays done"))
    return lines


def _run_lines(run_dir: Path) -> list[tuple[str, str]]:
    if not (run_dir / "config.yaml").exists():
        return [("state", "has not started yet")]
    total = read_run_config(run_dir)["training"]["train_steps"]
    lines = []
    if (run_dir / "run.json").exists():
        lines.append(("starts", str(read_run_record(run_dir)["attempt"])))
    series = read_metrics(run_dir)
    losses = series.get("train/loss", [])
    step = losses[-1][0] if losses else 0
    lines.append(("step", f"{step:,} of {total:,}" + (f", loss {losses[-1][1]:.4f}" if losses else "")))
    if (validation := series.get("validation/loss")) is not None:
        lines.append(("validation", f"loss {validation[-1][1]:.4f} at step {validation[-1][0]:,}"))
    if rates := series.get("train/tokens_per_second"):
        seconds = series["train/step_seconds"][-1][1]
        lines.append(("speed", f"{rates[-1][1]:,.0f} tokens/s, {seconds:.3g} s a step"))
        if step < total:
            lines.append(("ETA", f"{datetime.timedelta(seconds=round((total - step) * seconds))} of training"))
    latest = run_dir / "checkpoints" / "latest"
    if latest.exists():
        age = round(time.time() - latest.stat().st_mtime)
        lines.append(("checkpoint", f"{latest.read_text().strip()}, {datetime.timedelta(seconds=max(age, 0))} ago"))
    done = (run_dir / "DONE").exists()
    return [*lines, ("state", "done" if done else "not done")]


def cancel(folder: Path, *, now: bool) -> str:
    """End the jobs of a folder: a running training after a checkpoint, anything else (or ``now``) at once.

    Raises:
        UserError: nothing was sent for the folder, or Slurm does not answer.
    """
    submission = find_submission(folder)
    active = submission.active_jobs()
    if not active:
        return f"no job of {folder} waits or runs"
    submission.cancelled.write_text("by narrowbert-submit cancel\n", encoding="utf-8")
    is_training = submission.folder.name == "submission"
    gentle = [job.job_id for job in active if is_training and not now and job.state == "RUNNING"]
    # Elements that wait stand as NUMBER_0-31 in the queue; whole arrays are meant, by their number.
    rest = list(dict.fromkeys(job.job_id.split("_")[0] for job in active if job.job_id not in gentle))
    for job_id in gentle:
        slurm.signal_batch(job_id, "USR1")
    if rest:
        slurm.cancel(rest)
    said = [f"job {job_id} saves a checkpoint and ends" for job_id in gentle]
    said += [f"job {', '.join(rest)} is ended"] if rest else []
    return "; ".join(said)


def logs(folder: Path, *, lines: int, follow: bool, write: Callable[[str], None]) -> None:
    """Print the end of what the jobs and the ranks wrote, each line with its rank; with ``follow`` until the end.

    Raises:
        UserError: nothing was sent for the folder.
    """
    submission = find_submission(folder)
    followed: dict[Path, _Tail] = {}
    asked = 0.0
    first = True
    while True:
        ended = not follow
        if follow and time.monotonic() - asked > _ASK_SLURM_S:
            asked = time.monotonic()
            ended = not _may_go_on(submission)
        for path, label in _log_files(submission):
            tail = followed.setdefault(path, _Tail(path, label, lines if first else None))
            for line in tail.read(last=ended):
                write(line)
        if ended:
            return
        first = False
        time.sleep(_POLL_S)


def _may_go_on(submission: Submission) -> bool:
    try:
        return bool(submission.active_jobs())
    except slurm.SlurmError:
        return True  # the controller is away; the ranks may well run


def _log_files(submission: Submission) -> Iterator[tuple[Path, str]]:
    """Files of the jobs, in which srun labels the lines of the ranks, and of the ranks that write to their own."""
    yield from ((path, "") for path in sorted(submission.logs.glob("*.out"), key=_number))
    if submission.folder.name == "submission":
        for path in sorted(submission.folder.parent.glob("logs/rank-*.log"), key=_number):
            match = _RANK_LOG.fullmatch(path.name)
            if match is not None and match[1] != "0":  # what rank 0 logs is in the job's file already
                yield path, f"{match[1]}: "


def _number(path: Path) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", path.name)]


class _Tail:
    """Reads what is new in a file, whole lines.

    Args:
        path: of the file.
        label: put before each line.
        lines: how many of those that are there already to return; None: all.
    """

    def __init__(self, path: Path, label: str, lines: int | None) -> None:
        self._path, self._label, self._lines = path, label, lines
        self._offset = 0

    def read(self, *, last: bool) -> list[str]:
        """New lines; the last one without its end only when nothing more is to come."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                content = file.read()
        except OSError:
            return []
        if not last:
            content = content[: content.rfind(b"\n") + 1]
        self._offset += len(content)
        found = content.decode(errors="replace").splitlines()
        if self._lines is not None:
            found = found[-self._lines :] if self._lines else []
            self._lines = None
        return [self._label + line for line in found]
