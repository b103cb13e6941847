"""Tasks that fail while the other tasks of their stage go on."""

import dataclasses
import traceback
from collections.abc import Sequence
from typing import Literal

from data_prep.contract.command_line import UserError, one_line
from data_prep.contract.redaction import redact_text, redact_urls

MOST_IN_A_ROW = 20
"""Failures after another with which a stage ends early: a full disk fails every task there is."""

_NAMED = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskFailure:
    """How a task ended."""

    index: int
    """Number of the task in its stage."""
    kind: Literal["refused", "crashed", "killed"]
    """refused: a mistake of the user's. crashed: a bug of ours. killed: its process was, when it ran alone."""
    error: str
    """One line: of a mistake of the user's what it says, of a bug its kind too."""
    traceback: str = ""
    """Where a bug was raised."""


class TasksFailed(Exception):
    """Some tasks of a stage failed. The message is one line that names them.

    Args:
        stage: their stage.
        failures: what failed, at least one.
        left: tasks that were not tried any more.
    """

    def __init__(self, stage: str, failures: Sequence[TaskFailure], left: int) -> None:
        named = [f"{stage} task {failure.index}: {failure.error}" for failure in failures[:_NAMED]]
        if len(failures) > _NAMED:
            named.append(f"and {len(failures) - _NAMED} more")
        rest = f"{left} were not tried any more" if left else "every other one is done"
        super().__init__(f"{'; '.join(named)} ({rest})")
        self.failures = tuple(failures)


class TasksRefused(TasksFailed, UserError):
    """All of them failed for a mistake of the user's: trying again helps nothing."""


def failure_of(index: int, error: Exception) -> TaskFailure:
    """What there is to tell of a task that raised ``error``."""
    if isinstance(error, UserError):
        return TaskFailure(index=index, kind="refused", error=redact_urls(one_line(str(error))))
    last_line = redact_text(one_line("".join(traceback.format_exception_only(error))))
    told = redact_text("".join(traceback.format_exception(error)))
    return TaskFailure(index=index, kind="crashed", error=last_line, traceback=told)


def killed(index: int) -> TaskFailure:
    """What there is to tell of a task whose process died."""
    error = "its process was killed while no other task ran beside it, most often for want of memory"
    return TaskFailure(index=index, kind="killed", error=error)


def tasks_failed(stage: str, failures: Sequence[TaskFailure], left: int) -> TasksFailed:
    """The exception for some failures."""
    refused = all(failure.kind == "refused" for failure in failures)
    return (TasksRefused if refused else TasksFailed)(stage, failures, left)
