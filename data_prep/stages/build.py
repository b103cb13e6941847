"""Corpus -> shard folder: plans the tasks, runs those that are not done yet, and puts the folder in its place.

Work is done in OUTPUT.partial, which bears the plan: hashes of configuration, tokenizer and every input. A run
that was killed is resumed where it stood. A plan of anything else is never mixed with it. ``build_shards`` runs
all tasks in worker processes, ``run_tasks`` some of a stage's, so that a cluster can spread them over machines.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from data_prep.config import PrepConfig
from data_prep.contract.command_line import UserError
from data_prep.contract.shard_format import MANIFEST
from data_prep.contract.shards import open_shards
from data_prep.corpus.draws import check_draws
from data_prep.filters.registry import filter_notes
from data_prep.report.failures import MOST_IN_A_ROW, TaskFailure, failure_of, killed, tasks_failed
from data_prep.report.progress import Progress
from data_prep.stages.duplicates import run_duplicates, run_survivors
from data_prep.stages.finish import Summary, check_counts, clear_away, finish, summary
from data_prep.stages.map import run_map
from data_prep.stages.order import run_order
from data_prep.stages.pack import run_pack
from data_prep.stages.records import (
    DamagedTask,
    number_of_tasks,
    require_record,
    require_stage_before,
    set_aside,
    stages_of,
    task_record,
)
from data_prep.stages.reduce import run_reduce
from data_prep.stages.texts.lines import run_lines, run_repeated
from data_prep.stages.work_folder import index_large_files, locked_work_folder, prepare_work_folder, read_plan
from data_prep.stages.work_plan import (
    PLAN,
    Planned,
    WorkPlan,
    as_json,
    difference,
    inputs_identity,
    make_plan,
    map_task,
    work_path,
)
from data_prep.stages.workers import WorkerKilled, Workers

Result = TypeVar("Result")

_RUN: dict[str, Callable[[WorkPlan, int], dict[str, Any]]] = {
    "lines": run_lines,
    "repeated": run_repeated,
    "map": run_map,
    "duplicates": run_duplicates,
    "survivors": lambda plan, _: run_survivors(plan),
    "pack": run_pack,
    "order": lambda plan, _: run_order(plan),
    "reduce": run_reduce,
}
"""Stage -> what runs its task of that number and returns the record."""

_READ_IN_PARTS = {("map", "pack"): ("duplicates", "survivors"), ("lines", "repeated"): ("repeated",)}
"""A stage, and one that finds its results damaged -> the stages that may have read them so."""

MAX_REPAIRS = 100
"""Damaged results that one command makes again; more than that is a file system that loses what it is given."""


def build_shards(config: PrepConfig, progress: Progress) -> Summary:
    """Make the shard folder ``config.output``, resume what a killed run left, or return at once if it is complete.

    Raises:
        UserError: wrong input, too little text, a folder of another configuration at ``output``, or another run
            at work on it. Nothing that is finished is deleted: the command goes on from there when it is mended.
    """
    with Workers(config.num_workers, note=progress.note) as workers:
        planned = make_plan(config, workers, progress)
        check_draws([(found.file, found.survey["bytes"]) for found in planned.files], config)
        return build_planned(planned, workers, progress)


def build_planned(planned: Planned, workers: Workers, progress: Progress) -> Summary:
    """Make the shard folder of a plan; as ``build_shards``."""
    plan, identity = planned.plan, planned.identity
    output = Path(plan.config.output)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        return _already_there(plan, identity)
    try:
        with locked_work_folder(plan.work, progress, exclusive=True):
            prepare_work_folder(planned, progress)
            index_large_files(planned, workers, progress)
            for stage in stages_of(plan.config)[1:-1]:
                _run_stage(plan, stage, None, workers, progress)
            return _finish(plan, identity, workers, progress)
    except OSError as error:
        raise UserError(f"cannot write the shards {output}: {error}; the same command goes on from here") from error


def run_task(config: PrepConfig, task: str, index: int | None, progress: Progress) -> str:
    """Run one task of a plan, or a whole stage where ``index`` is None; a line on what was done.

    Raises:
        UserError: no plan, a plan of something else, a stage before it that is not complete, or no such number.
    """
    if task not in ("plan", "finish"):
        return run_tasks(config, task, None if index is None else [index], progress)
    work = work_path(config)
    if task == "finish" and (Path(config.output) / MANIFEST).is_file() and not (work / PLAN).is_file():
        clear_away(config)  # a start before this one was ended in its clean-up
        return f"{config.output} is there already"
    with Workers(config.num_workers, note=progress.note) as workers, locked_work_folder(work, progress, exclusive=True):
        if task == "plan":
            planned = make_plan(config, workers, progress)
            check_draws([(found.file, found.survey["bytes"]) for found in planned.files], config)
            prepare_work_folder(planned, progress)
            index_large_files(planned, workers, progress)
            numbered = "lines, map and pack" if "lines" in stages_of(config) else "map and pack"
            return f"{planned.plan.work}: {numbered} tasks 0 to {planned.plan.num_tasks - 1}"
        plan, identity = read_plan(config)
        if Path(config.output).exists():
            done = _already_there(plan, identity)
        else:
            done = _finish(plan, identity, workers, progress)
        return f"{config.output}: root hash {done.root_hash}"


def run_tasks(
    config: PrepConfig, stage: str, indices: Sequence[int] | None, progress: Progress, *, keep_going: bool = False
) -> str:
    """Run some tasks of a stage between plan and finish, or all, in ``config.num_workers`` processes; what was done.

    Those that are done already are left as they are.

    Args:
        config: the whole configuration.
        stage: its name.
        indices: the tasks' numbers; None: all.
        progress: told how far they are.
        keep_going: a task that fails, even one whose process is killed, does not keep the others from being done. No
            task runs in this process then.

    Raises:
        UserError: no plan, a plan of something else, a stage before it that is not complete, or no such number.
        TasksFailed: with ``keep_going``, some tasks failed (``TasksRefused``: for a mistake of the user's, each).
    """
    with Workers(config.num_workers, apart=keep_going, note=progress.note) as workers:
        if stage not in stages_of(config):
            raise UserError(
                f"--task {stage} needs --filters.repeated_lines.across_documents true, which adds this stage"
            )
        plan, _ = read_plan(config)
        with locked_work_folder(plan.work, progress, exclusive=False):
            return _run_stage(plan, stage, indices, workers, progress, keep_going=keep_going)


def count_tasks(config: PrepConfig, stage: str) -> int:
    """How many tasks a stage has, by the plan that ``--task plan`` wrote.

    Raises:
        UserError: no plan, a plan of something else, or the stage that decides their number is not complete.
    """
    return number_of_tasks(read_plan(config)[0], stage)


def unfinished_tasks(config: PrepConfig, task: str) -> list[int]:
    """Numbers of the tasks of a stage that are not done yet, by the plan that ``--task plan`` wrote.

    Raises:
        UserError: no plan, a plan of something else, or the stage that decides their number is not complete.
    """
    plan, _ = read_plan(config)
    if task in ("plan", "finish"):
        return [0] if task == "finish" else []
    return [index for index in range(number_of_tasks(plan, task)) if task_record(plan, task, index) is None]


def _run_stage(
    plan: WorkPlan, stage: str, indices: Sequence[int] | None, workers: Workers, progress: Progress,
    *, keep_going: bool = False,
) -> str:  # fmt: skip
    """Run the tasks of a stage that are not done yet, of all or of those numbered ``indices``."""

    def run() -> str:
        return _run_once(plan, stage, indices, workers, progress, keep_going=keep_going)

    return _repaired(plan, stage, workers, progress, run)


def _finish(plan: WorkPlan, identity: dict[str, Any], workers: Workers, progress: Progress) -> Summary:
    return _repaired(plan, "finish", workers, progress, lambda: finish(plan, identity, progress.note))


def _repaired(plan: WorkPlan, stage: str, workers: Workers, progress: Progress, action: Callable[[], Result]) -> Result:
    """What ``action`` of a stage gives; what earlier stages left and it finds damaged is made again first.

    The stages of ``_READ_IN_PARTS`` have read the tables of a task without looking at every byte of them: what they
    made of a damaged one is made again too.
    """
    for _ in range(MAX_REPAIRS):
        try:
            return action()
        except DamagedTask as damage:
            progress.note(str(damage))
            again = _READ_IN_PARTS.get((damage.stage, stage), ())
            for between in again:
                for index in range(number_of_tasks(plan, between)):
                    set_aside(plan, between, index)
            for between in (damage.stage, *again):
                if between != stage:
                    _run_once(plan, between, None, workers, progress)
    return action()


def _run_once(
    plan: WorkPlan, stage: str, indices: Sequence[int] | None, workers: Workers, progress: Progress,
    *, keep_going: bool = False,
) -> str:  # fmt: skip
    require_stage_before(plan, stage)
    total = number_of_tasks(plan, stage)
    chosen = range(total) if indices is None else indices
    for index in chosen:
        if not 0 <= index < total:
            raise UserError(f"--index {index}: the {stage} tasks are numbered 0 to {total - 1}")
    todo = [number for number in chosen if task_record(plan, stage, number) is None]
    work = _Work(plan, stage)
    progress.start(stage, *work.of(chosen), work.of(set(chosen) - set(todo))[0])
    for number, record in _results(plan, stage, todo, workers, progress, keep_going=keep_going):
        progress.advance(work.of([number])[0], record.get("documents", 0) if work.in_bytes else 0)
    if stage == "map" and chosen:
        record = require_record(plan, "map", chosen[0])
        for note in filter_notes(plan.config, record):
            progress.note(note)
    if stage == "pack" and indices is None:
        check_counts(plan)
    line = f"{stage}: {len(todo)} of {len(chosen)} tasks run, {len(chosen) - len(todo)} done before"
    following = {"lines": "repeated", "map": "duplicates", "order": "reduce"}.get(stage)
    if following is None or any(task_record(plan, stage, index) is None for index in (0, total - 1)) or indices:
        return line
    return f"{line}; {following} tasks 0 to {number_of_tasks(plan, following) - 1}"


def _run_task(task: tuple[WorkPlan, str, int]) -> dict[str, Any]:
    plan, stage, index = task
    return _RUN[stage](plan, index)


def _results(
    plan: WorkPlan, stage: str, todo: Sequence[int], workers: Workers, progress: Progress, *, keep_going: bool
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Run tasks; each number with its record. With ``keep_going`` failures are raised when every other one is done."""
    if not keep_going:
        yield from zip(todo, workers.run(_run_task, [(plan, stage, number) for number in todo]), strict=True)
        return
    failures: list[TaskFailure] = []
    in_a_row = 0
    for tried, (number, record) in enumerate(_attempts(plan, stage, todo, workers, progress), 1):
        if not isinstance(record, TaskFailure):
            in_a_row = 0
            yield number, record
            continue
        progress.note(f"{stage} task {number} failed: {record.traceback or record.error}")
        failures.append(record)
        in_a_row += 1
        if in_a_row == MOST_IN_A_ROW and tried < len(todo):
            raise tasks_failed(stage, failures, len(todo) - tried)
    if failures:
        raise tasks_failed(stage, failures, 0)


def _attempts(
    plan: WorkPlan, stage: str, todo: Sequence[int], workers: Workers, progress: Progress
) -> Iterator[tuple[int, dict[str, Any] | TaskFailure]]:
    left = collections.deque(todo)
    while left:
        try:
            for result in workers.run(_try_task, [(plan, stage, number) for number in left]):
                yield left.popleft(), result
        except WorkerKilled:  # which task did it is not known: each that was under way runs alone
            suspects = [left.popleft() for _ in range(min(workers.most_under_way, len(left)))]
            found = False
            for number in suspects:
                result = _run_alone(plan, stage, number, workers)
                found = found or (isinstance(result, TaskFailure) and result.kind == "killed")
                yield number, result
            if not found:
                workers.halve()
                progress.note(
                    "a worker process was killed, and each task that was under way then runs well alone: too little "
                    "memory for so many workers, going on with half as many"
                )


def _run_alone(plan: WorkPlan, stage: str, number: int, workers: Workers) -> dict[str, Any] | TaskFailure:
    if (record := task_record(plan, stage, number)) is not None:
        return record
    try:
        return workers.run_alone(_try_task, (plan, stage, number))
    except WorkerKilled:
        return killed(number)


def _try_task(task: tuple[WorkPlan, str, int]) -> dict[str, Any] | TaskFailure:
    try:
        return _run_task(task)
    except DamagedTask:  # what it read is made again, and then this task
        raise
    except Exception as error:  # whatever it is, it is this task's alone
        return failure_of(task[2], error)


class _Work:
    """How much work the tasks of a stage are, and its unit: bytes of text where the corpus is read, else tasks."""

    def __init__(self, plan: WorkPlan, stage: str) -> None:
        self._plan = plan
        self.in_bytes = stage in ("lines", "map")

    def of(self, numbers: Iterable[int]) -> tuple[int, str]:
        if not self.in_bytes:
            return len(list(numbers)), "tasks"
        numbers = list(numbers)
        if len(numbers) == self._plan.num_tasks:
            return self._plan.total_bytes, "B"
        return sum(map_task(self._plan, number).bytes for number in numbers), "B"


def _already_there(plan: WorkPlan, identity: dict[str, Any]) -> Summary:
    """The summary of a complete folder with the same identity; UserError for any other.

    What a kill in its clean-up left beside it is cleared away.
    """
    output = Path(plan.config.output)
    if not (output / MANIFEST).is_file():
        raise UserError(f"{output} exists and is no shard folder: delete it or name another --output")
    manifest = open_shards(output).manifest
    for part, wanted in identity.items():
        found = manifest.get(part)
        if part == "inputs" and isinstance(found, list):  # as folders of schema 1 have them
            found = inputs_identity(found)
        if as_json(wanted) != found:
            raise UserError(
                f"{output} holds shards made with {difference(part, wanted, found)}: delete it or name another --output"
            )
    clear_away(plan.config)
    return summary(manifest, already_there=True)
