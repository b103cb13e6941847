"""Run by a job of ``narrowbert-submit prep``: this job's block of the tasks of one stage.

Usage: python -m cluster.prep_stage --stage STAGE --part I --parts N CONFIGURATION...

Exit code 0: the block is done. 2: a mistake of the user's, another start would end the same way. 1: a crash.
What failed is in the submission's ``failed/STAGE-PART`` too.
"""

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from cluster.elements import tasks_of_element
from cluster.submission import Submission, submission_of_shards
from data_prep.config import PrepConfig, check_config
from data_prep.contract.command_line import Parser, UserError, one_line, read_config, run_command
from data_prep.contract.redaction import redact_text, redact_urls
from data_prep.report.failures import TasksFailed
from data_prep.report.log_progress import LogProgress
from data_prep.stages.build import count_tasks, run_task, run_tasks
from data_prep.stages.records import ALL_STAGES
from data_prep.verification.folder import verify

PROGRAM = "narrowbert-prep"


class _ElementProgress(LogProgress):
    """Lines in the job's log; a task that is done starts the count of crashes anew."""

    def __init__(self, crashes: Path) -> None:
        super().__init__(_print)
        self._crashes = crashes

    def advance(self, count: int, documents: int = 0) -> None:
        super().advance(count, documents)
        self._crashes.unlink(missing_ok=True)


def main() -> None:
    """Entry point of the job's command."""
    sys.exit(run_command(PROGRAM, _run, sys.argv[1:]))


def _run(argv: Sequence[str]) -> int:
    parser = Parser(prog="cluster.prep_stage", add_help=False)
    parser.add_argument("--stage", choices=ALL_STAGES, required=True)
    parser.add_argument("--part", type=int, required=True)
    parser.add_argument("--parts", type=int, required=True)
    options, rest = parser.parse_known_args(argv)
    config = read_config(PrepConfig, rest, "cluster.prep_stage", "One stage's tasks.")
    submission = submission_of_shards(Path(config.output))
    failed = submission.failed(options.stage, options.part)
    try:
        check_config(config)
        _run_block(config, options.stage, options.part, options.parts, submission)
    except Exception as error:
        _record(failed, _lines_of(options.stage, error))
        if isinstance(error, UserError):
            raise
        if not isinstance(error, TasksFailed):  # their tracebacks are in the log already
            _print(redact_text(traceback.format_exc().rstrip()))
        _print(f"{PROGRAM}: error: {one_line(str(error))}")
        return 1
    failed.unlink(missing_ok=True)
    return 0


def _run_block(config: PrepConfig, stage: str, part: int, parts: int, submission: Submission) -> None:
    if stage in ("plan", "finish"):
        with LogProgress(_print) as progress:
            _run_whole(config, stage, progress)
        return
    block = tasks_of_element(count_tasks(config, stage), part, parts)
    if not block:
        _print(f"{stage}: fewer tasks than elements, this one has none")
        return
    with _ElementProgress(submission.crashes(stage, part)) as progress:
        done = run_tasks(config, stage, block, progress, keep_going=True)
    _print(done)


def _run_whole(config: PrepConfig, stage: str, progress: LogProgress) -> None:
    if stage == "plan":
        _print(run_task(config, stage, None, progress))
        return
    progress.start("finish", 1, "folder")
    _print(run_task(config, stage, None, progress))
    progress.advance(1)
    progress.start("verify", 1, "folder")
    found = verify(config.output, num_workers=config.num_workers)
    if found.problems:
        raise UserError("; ".join(found.problems))
    progress.advance(1)
    _print(f"verified {found.summary}")


def _lines_of(stage: str, error: Exception) -> list[str]:
    """What to tell of a failure, one line each."""
    if not isinstance(error, TasksFailed):
        text = str(error)
        if not isinstance(error, UserError):
            text = redact_text("".join(traceback.format_exception_only(error)))
        return [f"{stage}: {text}"]
    hint = ": give more memory (cluster.prep.memory) or fewer cores (cluster.prep.cpus)"
    return [
        f"{stage} task {failure.index}: {failure.error}" + (hint if failure.kind == "killed" else "")
        for failure in error.failures
    ]


def _record(failed: Path, lines: Sequence[str]) -> None:
    try:
        failed.parent.mkdir(parents=True, exist_ok=True)
        failed.write_text("".join(redact_urls(one_line(line)) + "\n" for line in lines), encoding="utf-8")
    except OSError as error:  # a full disk is told of in the log at least
        _print(f"{PROGRAM}: cannot write {failed}: {error.strerror}")


def _print(text: str) -> None:
    print(redact_urls(text), flush=True)


if __name__ == "__main__":
    main()
