"""Corpus -> shard folder: plans the tasks, runs those that are not done yet, and puts the folder in its place.

Work is done in OUTPUT.partial, which bears the plan: hashes of configuration, tokenizer and every input. A run
that was killed is resumed where it stood. A plan of anything else is never mixed with it. ``build_shards`` runs
all tasks in worker processes, ``run_tasks`` some of a stage's, so that a cluster can spread them over machines.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from data_prep.config import PrepConfig
from data_prep.contract.command_line import UserError
from data_prep.contract.shard_format import MANIFEST
from data_prep.contract.shards import open_shards
from data_prep.filters.registry import filter_notes
from data_prep.report.progress import Progress
from data_prep.stages.duplicates import run_duplicates
from data_prep.stages.finish import Summary, check_counts, finish, summary
from data_prep.stages.map import run_map
from data_prep.stages.order import run_order
from data_prep.stages.pack import run_pack
from data_prep.stages.records import (
    STAGES,
    number_of_tasks,
    require_record,
    require_stage_before,
    task_record,
)
from data_prep.stages.reduce import run_reduce
from data_prep.stages.work_folder import read_plan, work_folder
from data_prep.stages.work_plan import WorkPlan, as_json, difference, make_plan
from data_prep.stages.workers import Workers

_RUN: dict[str, Callable[[WorkPlan, int], dict[str, Any]]] = {
    "map": run_map,
    "duplicates": lambda plan, _: run_duplicates(plan),
    "pack": run_pack,
    "order": lambda plan, _: run_order(plan),
    "reduce": run_reduce,
}
"""Stage -> what runs its task of that number and returns the record."""


def build_shards(config: PrepConfig, progress: Progress) -> Summary:
    """Make the shard folder ``config.output``, resume what a killed run left, or return at once if it is complete.

    Raises:
        UserError: wrong input, too little text, a folder of another configuration at ``output``, or another run
            at work on it.
    """
    output = Path(config.output)
    with Workers(config.num_workers) as workers:
        plan, identity = make_plan(config, workers, progress)
        if output.exists() and not (output.is_dir() and not any(output.iterdir())):
            return _already_there(output, identity)
        try:
            with work_folder(plan, identity, progress, exclusive=True):
                return _run_all(plan, identity, workers, progress)
        except OSError as error:
            raise UserError(f"cannot write the shards {output}: {error}; the same command goes on from here") from error


def run_task(config: PrepConfig, task: str, index: int | None, progress: Progress) -> str:
    """Run one task of a plan, or a whole stage where ``index`` is None; a line on what was done.

    Raises:
        UserError: no plan, a plan of something else, a stage before it that is not complete, or no such number.
    """
    with Workers(config.num_workers) as workers:
        if task == "plan":
            plan, identity = make_plan(config, workers, progress)
            with work_folder(plan, identity, progress, exclusive=True):
                return f"{plan.work}: map and pack tasks 0 to {len(plan.tasks) - 1}"
        plan, identity = read_plan(config)
        with work_folder(plan, identity, progress, exclusive=False):
            if task == "finish":
                summary = finish(plan, identity)
                return f"{config.output}: root hash {summary.root_hash}"
            return _run_stage(plan, task, None if index is None else [index], workers, progress)


def run_tasks(config: PrepConfig, stage: str, indices: Sequence[int], progress: Progress) -> str:
    """Run some tasks of a stage between plan and finish, in ``config.num_workers`` processes; a line on what was done.

    Those that are done already are left as they are.

    Raises:
        UserError: no plan, a plan of something else, a stage before it that is not complete, or no such number.
    """
    with Workers(config.num_workers) as workers:
        plan, identity = read_plan(config)
        with work_folder(plan, identity, progress, exclusive=False):
            return _run_stage(plan, stage, indices, workers, progress)


def count_tasks(config: PrepConfig, stage: str) -> int:
    """How many tasks a stage has, by the plan that ``--task plan`` wrote.

    Raises:
        UserError: no plan, a plan of something else, or for ``reduce`` no order yet.
    """
    return number_of_tasks(read_plan(config)[0], stage)


def unfinished_tasks(config: PrepConfig, task: str) -> list[int]:
    """Numbers of the tasks of a stage that are not done yet, by the plan that ``--task plan`` wrote.

    Raises:
        UserError: no plan, a plan of something else, or for ``reduce`` no order yet.
    """
    plan, _ = read_plan(config)
    if task in ("plan", "finish"):
        return [0] if task == "finish" else []
    return [index for index in range(number_of_tasks(plan, task)) if task_record(plan, task, index) is None]


def _run_all(plan: WorkPlan, identity: dict[str, Any], workers: Workers, progress: Progress) -> Summary:
    for stage in STAGES[1:-1]:
        _run_stage(plan, stage, None, workers, progress)
    return finish(plan, identity)


def _run_stage(plan: WorkPlan, stage: str, indices: Sequence[int] | None, workers: Workers, progress: Progress) -> str:
    """Run the tasks of a stage that are not done yet, of all or of those numbered ``indices``."""
    total = number_of_tasks(plan, stage)
    chosen = range(total) if indices is None else indices
    for index in chosen:
        if not 0 <= index < total:
            raise UserError(f"--index {index}: the {stage} tasks are numbered 0 to {total - 1}")
    require_stage_before(plan, stage)
    todo = [number for number in chosen if task_record(plan, stage, number) is None]
    progress.start(stage, *_work_of(plan, stage, chosen))
    for number in set(chosen) - set(todo):
        progress.advance(_work_of(plan, stage, [number])[0])
    for number, record in zip(todo, workers.run(_run_task, [(plan, stage, n) for n in todo]), strict=True):
        progress.advance(_work_of(plan, stage, [number])[0], record.get("documents", 0) if stage == "map" else 0)
    if stage == "map" and chosen:
        record = require_record(plan, "map", chosen[0])
        for note in filter_notes(plan.config, record):
            progress.note(note)
    if stage == "pack" and indices is None:
        check_counts(plan)
    done = f"{stage}: {len(todo)} of {len(chosen)} tasks run, {len(chosen) - len(todo)} done before"
    return f"{done}; reduce tasks 0 to {number_of_tasks(plan, 'reduce') - 1}" if stage == "order" else done


def _run_task(task: tuple[WorkPlan, str, int]) -> dict[str, Any]:
    plan, stage, index = task
    return _RUN[stage](plan, index)


def _work_of(plan: WorkPlan, stage: str, numbers: Iterable[int]) -> tuple[int, str]:
    """How much work tasks are, and its unit: bytes of text for map, tasks for the others."""
    if stage == "map":
        return sum(plan.task_bytes[number] for number in numbers), "B"
    return len(list(numbers)), "tasks"


def _already_there(output: Path, identity: dict[str, Any]) -> Summary:
    """The summary of a complete folder with the same identity; UserError for any other."""
    if not (output / MANIFEST).is_file():
        raise UserError(f"{output} exists and is no shard folder: delete it or name another --output")
    manifest = open_shards(output).manifest
    for part, wanted in identity.items():
        if as_json(wanted) != manifest[part]:
            raise UserError(
                f"{output} holds shards made with {difference(part, wanted, manifest[part])}: "
                "delete it or name another --output"
            )
    return summary(manifest["root_hash"], manifest["splits"], manifest["statistics"]["rejects"], already_there=True)
