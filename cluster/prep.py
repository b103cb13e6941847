"""``narrowbert-submit prep``: the stages of narrowbert-prep as jobs, each after the one before it.

Stages of many tasks are job arrays, the others single jobs; finish verifies too. Every job
waits for the one before it to end well (``afterok``). All are sent at once from the login node: no job sends another.
"""

import dataclasses
import glob
import itertools
import shlex
from collections.abc import Sequence
from pathlib import Path

from cluster import slurm
from cluster.batch import file_pattern, job_name_of, prep_script
from cluster.config import ClusterConfig, check_cluster, check_path, seconds_of
from cluster.elements import element_of_task
from cluster.submission import check_no_active_job, remove_if_empty, submission_of_shards
from cluster.submit import check_no_secrets, check_partition, check_shared, stated_options
from data_prep.config import PrepConfig, as_tuple, check_config, tokenizer_path
from data_prep.contract.command_line import UserError, config_as_dict
from data_prep.contract.files import check_writable
from data_prep.contract.remote import is_url
from data_prep.contract.shell.options import did_you_mean
from data_prep.corpus.builtin_corpus import BUILTIN
from data_prep.corpus.files import find_corpus_files
from data_prep.stages.build import count_tasks, unfinished_tasks
from data_prep.stages.records import ALL_STAGES, ARRAY_STAGES, stages_of
from data_prep.stages.work_plan import work_path

_MAY_HOLD_URLS = ("corpus.paths", "duplicates.evaluation_paths", "validation_paths")
_LOOKED_AT = 100
_SIGNAL_LEAD_S = 120
"""How long before its time limit an element goes back to the queue: the controller may be slow to answer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageJob:
    """A job to send."""

    stage: str
    """One of ``ALL_STAGES``."""
    elements: tuple[int, ...]
    """Elements of the array that have work left; empty for a single job."""


def submit_prep(config: PrepConfig, cluster: ClusterConfig, *, dry_run: bool) -> str:
    """Check, render and send the jobs of a preparation; what to print.

    A preparation that was sent before and failed is resumed: only elements that have work left are sent.

    Raises:
        UserError: the first thing that cannot work. Nothing was sent then.
    """
    check_cluster(cluster)
    check_config(config)
    _check_stages(cluster)
    check_path("output", config.output)
    output = Path(config.output).absolute()
    is_there = (output / "manifest.json").exists()
    if is_there and not work_path(config).exists():
        return f"{config.output} is there already: nothing to do (narrowbert-prep verify checks it)"
    if not Path(tokenizer_path(config)).is_file():
        raise UserError(f"there is no tokenizer {tokenizer_path(config)}: make it with narrowbert-prep vocab")
    secret = check_no_secrets("the configuration", config, _MAY_HOLD_URLS)
    check_no_secrets("the cluster file", cluster)
    found = find_corpus_files(config.corpus, output=config.output)
    files = [Path(file.path) for file in found if file.path and not is_url(file.path)]
    check_writable("output", output)
    check_shared(cluster, [("output", output), *local_inputs(config)])
    # Links may lead anywhere: some of the files stand for all.
    check_shared(cluster, [("corpus.paths", path) for path in files[:: len(files) // _LOOKED_AT + 1]])
    submission = submission_of_shards(output)
    script = prep_script(
        cluster, submission=submission.folder, work_dir=Path.cwd(), arguments=["--config", str(submission.config_file)]
    )
    if dry_run:
        return script.rstrip("\n")
    for time_limit in {cluster.prep.time_limit_of(stage) for stage in stages_of(config)}:
        check_partition(cluster, 1, time_limit)
    _check_array_size(cluster)
    check_no_active_job(submission)
    # A finish that was ended in its clean-up has left no more than that to do.
    jobs = [StageJob(stage="finish", elements=())] if is_there else jobs_to_send(config, cluster)
    snapshot = dataclasses.replace(config, output=str(output), num_workers=cluster.prep.cpus)
    submission.write(script, config_as_dict(snapshot), private=bool(secret))
    name = job_name_of(cluster, output)
    environment = slurm.submission_environment(stated_options(cluster))
    sent: list[str] = []
    try:
        slurm.check_script(submission.script, environment)
        for job in jobs:
            options = _options(job, cluster, name, sent, submission.logs)
            sent.append(_send(submission.script, environment, job, cluster, options))
            submission.add_job(sent[-1], job.stage)
    except UserError:
        if sent:  # what waits for a job that was not sent would wait for good
            slurm.cancel(sent)
        remove_if_empty(submission)
        raise
    stages = ", ".join(f"{job.stage} {job_id}" for job, job_id in zip(jobs, sent, strict=True))
    line = f"jobs: {stages}; narrowbert-submit status {shlex.quote(config.output)} (or logs, cancel)"
    if secret:
        line += f"; {' and '.join(secret)} has a URL with a secret: {submission.config_file} is readable by you alone"
    return line


def _check_stages(cluster: ClusterConfig) -> None:
    for entry in cluster.prep.time_limits:
        stage = entry.split("=")[0]
        if stage not in ALL_STAGES:
            raise UserError(
                f"cluster.prep.time_limits has {entry!r}: the stages are {', '.join(ALL_STAGES)}"
                f"{did_you_mean(stage, set(ALL_STAGES))}"
            )


def _check_array_size(cluster: ClusterConfig) -> None:
    limit = slurm.max_array_size()
    if limit is not None and cluster.prep.array_tasks > limit:
        raise UserError(
            f"cluster.prep.array_tasks is {cluster.prep.array_tasks}: job arrays of this cluster have at most {limit} "
            f"elements (MaxArraySize), give {limit} or less"
        )


def local_inputs(config: PrepConfig) -> list[tuple[str, Path]]:
    """(key, path) of everything that the jobs read from a file system: each entry, and of a pattern its folder."""
    found = [("tokenizer", Path(tokenizer_path(config)))]
    for name, entries in [
        ("corpus.paths", as_tuple(config.corpus.paths)),
        ("duplicates.evaluation_paths", as_tuple(config.duplicates.evaluation_paths)),
        ("validation_paths", as_tuple(config.validation_paths)),
    ]:
        for entry in entries:
            if entry != BUILTIN and not is_url(entry):
                path = Path(entry).expanduser()
                fixed = itertools.takewhile(lambda part: not glob.has_magic(part), path.parts)
                found.append((name, path if path.exists() else Path(*fixed)))
    return found


def jobs_to_send(config: PrepConfig, cluster: ClusterConfig) -> list[StageJob]:
    """The stages that are not complete, each with the elements of its array that have work left."""
    parts = cluster.prep.array_tasks
    jobs: list[StageJob] = []
    for stage in stages_of(config):
        left: Sequence[int] | None = None
        if not jobs:  # nothing before this stage is to be done: what is left of it is known
            try:
                left = unfinished_tasks(config, stage)
            except UserError:  # no plan, or one of something else: the plan job makes it again
                left = None
        if left is not None and not left:
            continue
        elements: tuple[int, ...] = ()
        if stage in ARRAY_STAGES:
            elements = tuple(range(parts))
            if left is not None:
                total = count_tasks(config, stage)
                elements = tuple(sorted({element_of_task(index, total, parts) for index in left}))
        jobs.append(StageJob(stage=stage, elements=elements))
    return jobs


def _options(job: StageJob, cluster: ClusterConfig, name: str, sent: Sequence[str], logs: Path) -> list[str]:
    log = "%A_%a" if job.elements else "%j"
    options = [f"--job-name={name}-{job.stage}", f"--output={file_pattern('output', logs)}/{job.stage}-{log}.out"]
    limit = cluster.prep.time_limit_of(job.stage)
    lead = min(_SIGNAL_LEAD_S, seconds_of(limit) // 4)
    options += [f"--time={limit}", f"--signal=B:USR1@{lead}"]
    if job.elements:
        numbers = ",".join(map(str, job.elements))
        if job.elements == tuple(range(len(job.elements))):
            numbers = f"0-{len(job.elements) - 1}"
        options.append(f"--array={numbers}%{cluster.prep.max_running}")
    if sent:
        options += [f"--dependency=afterok:{sent[-1]}", "--kill-on-invalid-dep=yes"]
    return options


def _send(
    script: Path, environment: dict[str, str], job: StageJob, cluster: ClusterConfig, options: Sequence[str]
) -> str:
    parts = cluster.prep.array_tasks if job.elements else 1
    return slurm.submit(script, environment, *options, arguments=(job.stage, str(parts)))
