"""What a job asks of the cluster, and the checks across it. Imports no heavy library."""

import dataclasses
import re
from typing import Literal

from data_prep.contract.command_line import UserError
from data_prep.contract.shell.paths import PATH


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepJobsConfig:
    """How ``narrowbert-submit prep`` spreads the tasks of a stage."""

    array_tasks: int = 32
    """Elements of the job array of a stage with many tasks; each takes a block of them."""
    max_running: int = 16
    """Elements that run at the same time (the throttle of the array)."""
    cpus: int = 4
    """Cores an element; narrowbert-prep starts as many processes."""
    memory: str | None = None
    """Memory an element, such as 16G; default: what the partition gives."""
    time_limit: str = "12:00:00"
    """Time of an element, as --time takes it."""
    time_limits: tuple[str, ...] = ()
    """Other times for some stages, one STAGE=TIME an entry: [plan=1-00, finish=24:00:00]."""

    def time_limit_of(self, stage: str) -> str:
        """Time of an element of a stage."""
        return dict(entry.split("=", 1) for entry in self.time_limits).get(stage, self.time_limit)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """The cluster, and what a job asks of it."""

    job_name: str | None = None
    """Name of the job; default: that of the run directory."""
    partition: str | None = None
    """Partition; default: the cluster's own default."""
    account: str | None = None
    """Account to be charged."""
    qos: str | None = None
    """Quality of service."""
    nodes: int = 1
    """Nodes of a training job."""
    processes_per_node: int = 1
    """Ranks on a node; as many as gpus_per_node where there are GPUs."""
    gpus_per_node: int = 0
    """GPUs of a node; 0 trains on CPUs."""
    cpus_per_process: int = 1
    """Cores a rank: for its arithmetic on CPUs, else for reading, batches and writing checkpoints."""
    memory_per_node: str | None = None
    """Memory a node, such as 256G, or 0 for all of it; default: what the partition gives."""
    time_limit: str = "24:00:00"
    """Time after which Slurm ends the job, as --time takes it."""
    exclusive: bool = False
    """Whether the nodes are for this job alone."""
    sbatch_options: tuple[str, ...] = ()
    """Anything else sbatch knows, one option an entry: --constraint=h100, "--exclude=node[3,7]"."""
    signal_lead_seconds: int = 300
    """How long before the time limit the job is told to save and end."""
    max_crashes: int = 3
    """Crashes in a row without a new checkpoint after which a training job gives up; each is tried again in the same
    job. Of preparation: crashes and time limits of an element with no task done between; each goes to the queue."""
    max_requeues: int = 100
    """How often a job is put back into the queue."""
    continue_by: Literal["requeue", "resubmit"] = "requeue"
    """requeue: one job id, put back into the queue. resubmit: every job queues its successor when it starts, for
    sites that cancel jobs where others requeue them."""
    python: str | None = dataclasses.field(default=None, metadata=PATH)
    """Python of the ranks, with narrowbert installed; default: the one that runs narrowbert-submit, or python in a
    container."""
    modules: tuple[str, ...] = ()
    """Environment modules to load, such as cuda/12.8."""
    setup_script: str | None = dataclasses.field(default=None, metadata=PATH)
    """File that the job sources before anything else; for what modules and environment cannot say."""
    environment: tuple[str, ...] = ()
    """Variables of the job, one NAME=value an entry."""
    container: Literal["none", "pyxis", "apptainer"] = "none"
    """pyxis: srun --container-image; apptainer: apptainer exec in front of the command."""
    container_image: str | None = dataclasses.field(default=None, metadata=PATH)
    """Image: a registry's name, or a .sqsh or .sif file."""
    container_mounts: tuple[str, ...] = dataclasses.field(default=(), metadata=PATH)
    """Folders to mount, OUTSIDE:INSIDE; the run directory, the shards and the working folder must be seen inside."""
    shared_paths: tuple[str, ...] = dataclasses.field(default=(), metadata=PATH)
    """Folders that every node sees; run directory and shards must lie in one of them. Default: the kind of their file
    system decides."""
    prep: PrepJobsConfig = dataclasses.field(default_factory=PrepJobsConfig)
    """Preparing shards."""

    @property
    def world_size(self) -> int:
        """Ranks of a training job."""
        return self.nodes * self.processes_per_node


# What goes into an #SBATCH line: sbatch drops the lines after one that it cannot read, without a word.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_NAMES = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,-]{0,255}")
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")
_MEMORY = re.compile(r"\d+[KMGT]?")
_OPTION = re.compile(r"--(?P<name>[a-z][a-z-]*)(?:=[A-Za-z0-9_.,:/@%+*&|()\[\]=-]+)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=[^\x00-\x1f\x7f]*")
_MODULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+/-]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

# The job sets these itself, from other keys.
_OWN_OPTIONS = {
    "job-name", "partition", "account", "qos", "nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "gpus-per-node",
    "mem", "time", "exclusive", "signal", "requeue", "no-requeue", "open-mode", "output", "error", "array",
    "dependency", "kill-on-invalid-dep", "export", "chdir", "wrap", "parsable", "test-only", "wait", "hold", "begin",
}  # fmt: skip


MAX_LEAD_S = 65_535
"""Slurm takes no larger lead of a signal."""


def seconds_of(time_limit: str) -> int:
    """Seconds of a time as sbatch takes it: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S.

    Raises:
        ValueError: it is none.
    """
    match = _TIME.fullmatch(time_limit)
    if match is None:
        raise ValueError(time_limit)
    first, *rest = (int(match[name]) if match[name] else None for name in ("first", "second", "third"))
    second, third = rest
    assert first is not None
    if match["days"] is not None:
        return int(match["days"]) * 86_400 + first * 3600 + (second or 0) * 60 + (third or 0)
    if third is not None:
        return first * 3600 + (second or 0) * 60 + third
    return first * 60 + (second or 0)


def check_cluster(config: ClusterConfig) -> None:
    """Refuse what no cluster can be asked, before one is asked.

    Raises:
        UserError: the first problem.
    """
    _check_names(config)
    _check_numbers(config)
    _check_options(config)
    _check_environment(config)
    if config.gpus_per_node and config.processes_per_node != config.gpus_per_node:
        raise UserError(
            f"cluster.processes_per_node is {config.processes_per_node} and cluster.gpus_per_node "
            f"{config.gpus_per_node}: a rank has one GPU, give the same number"
        )


def _check_names(config: ClusterConfig) -> None:
    for name, value, allowed in [
        ("job_name", config.job_name, NAME),
        ("partition", config.partition, _NAMES),
        ("account", config.account, _NAMES),
        ("qos", config.qos, _NAMES),
    ]:
        if value is not None and not allowed.fullmatch(value):
            raise UserError(
                f"cluster.{name} is {value!r}: give letters, digits, '_', '.' and '-', at most 64, the first a letter "
                "or digit"
            )
    for name, value in [("memory_per_node", config.memory_per_node), ("prep.memory", config.prep.memory)]:
        if value is not None and not _MEMORY.fullmatch(value):
            raise UserError(f"cluster.{name} is {value!r}: give a number with K, M, G or T, such as 64G")
    for entry in config.prep.time_limits:
        if "=" not in entry:
            raise UserError(f"cluster.prep.time_limits has {entry!r}: give STAGE=TIME, such as map=24:00:00")
    stages = [(f"prep.time_limits {entry.split('=')[0]}", entry.split("=", 1)[1]) for entry in config.prep.time_limits]
    for name, value in [
        ("time_limit", config.time_limit), ("prep.time_limit", config.prep.time_limit), *stages,
    ]:  # fmt: skip
        try:
            seconds = seconds_of(value)
        except ValueError:
            raise UserError(f"cluster.{name} is {value!r}: give hours:minutes:seconds, or days-hours") from None
        if seconds <= 0:
            raise UserError(f"cluster.{name} is {value!r}: give more than 0")


def _check_numbers(config: ClusterConfig) -> None:
    for name, value, least in [
        ("nodes", config.nodes, 1),
        ("processes_per_node", config.processes_per_node, 1),
        ("gpus_per_node", config.gpus_per_node, 0),
        ("cpus_per_process", config.cpus_per_process, 1),
        ("signal_lead_seconds", config.signal_lead_seconds, 1),
        ("max_crashes", config.max_crashes, 1),
        ("max_requeues", config.max_requeues, 0),
        ("prep.array_tasks", config.prep.array_tasks, 1),
        ("prep.max_running", config.prep.max_running, 1),
        ("prep.cpus", config.prep.cpus, 1),
    ]:
        if value < least:
            raise UserError(f"cluster.{name} is {value}: give a number of at least {least}")
    most = longest_lead(config)
    if config.signal_lead_seconds > most:
        raise UserError(
            f"cluster.signal_lead_seconds {config.signal_lead_seconds} leaves no time to train in a time_limit of "
            f"{config.time_limit}: give at most {most}"
            if most
            else f"cluster.time_limit {config.time_limit} is too short for any signal before it: give more"
        )


def longest_lead(config: ClusterConfig) -> int:
    """Seconds before the time limit at which the signal to save may come at the earliest."""
    return min(seconds_of(config.time_limit) - 1, MAX_LEAD_S)


def _check_options(config: ClusterConfig) -> None:
    for option in config.sbatch_options:
        match = _OPTION.fullmatch(option)
        if match is None:
            raise UserError(f"cluster.sbatch_options has {option!r}: give --name or --name=value, without white space")
        if match["name"] in _OWN_OPTIONS:
            raise UserError(f"cluster.sbatch_options has {option}: the job sets --{match['name']} itself")


def _check_environment(config: ClusterConfig) -> None:
    for module in config.modules:
        if not _MODULE.fullmatch(module):
            raise UserError(f"cluster.modules has {module!r}: give names such as cuda/12.8")
    for variable in config.environment:
        if not _VARIABLE.fullmatch(variable):
            name = re.split(r"[=\s]", variable)[0]  # the value may be a secret
            raise UserError(f"cluster.environment has {name!r}: give NAME=value, without line breaks")
    for name, values in [
        ("python", [config.python]),
        ("setup_script", [config.setup_script]),
        ("container_image", [config.container_image]),
        ("container_mounts", config.container_mounts),
        ("shared_paths", config.shared_paths),
    ]:
        for value in values:
            if value is not None and (not value or _CONTROL.search(value)):
                raise UserError(f"cluster.{name} has {value!r}: give a path without line breaks")
    for mount in config.container_mounts:
        if "," in mount:
            raise UserError(f"cluster.container_mounts has {mount!r}: give one OUTSIDE:INSIDE an entry, without commas")
    if (config.container == "none") != (config.container_image is None):
        raise UserError("cluster.container and cluster.container_image belong together: give both or neither")
    if config.container_mounts and config.container == "none":
        raise UserError("cluster.container_mounts needs cluster.container: there is none")


def check_path(name: str, path: str) -> None:
    """Refuse a path that cannot stand in an #SBATCH line.

    Raises:
        UserError: it holds a control character or a backslash.
    """
    if _CONTROL.search(path) or "\\" in path:
        raise UserError(f"{name} {path!r} holds a line break, a control character or a backslash: take another name")
