"""``narrowbert-submit train``: everything that can be checked on the login node, then one job."""

import dataclasses
import re
import shlex
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from cluster import slurm
from cluster.batch import job_name_of, train_script
from cluster.config import MAX_LEAD_S, ClusterConfig, check_cluster, check_path, longest_lead, seconds_of
from cluster.submission import check_no_active_job, remove_if_empty, submission_of_run
from data_prep.contract.command_line import UserError, config_as_dict
from data_prep.contract.files import check_writable
from data_prep.contract.redaction import redact
from pipeline.config import RunConfig
from pipeline.data.mixture import Mixture
from pipeline.initialisation.check import check_start
from pipeline.model.parameters import count_parameters
from pipeline.runs.ancestry import split_source
from pipeline.runs.directory import check_run, flatten, is_finished
from pipeline.runs.records import read_metrics
from pipeline.runs.time_budget import as_recorded
from pipeline.tracking.description import check_tracking

_ASSUMED_BYTES_PER_SECOND = 100e6
"""Writing speed of a checkpoint while none was measured: a slow shared disk."""

# File systems of one machine; anything else is taken to be shared.
_LOCAL_FILE_SYSTEMS = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "ramfs", "overlay", "squashfs"}


def submit_train(config: RunConfig, cluster: ClusterConfig, *, dry_run: bool) -> str:
    """Check, render and send one training job; what to print.

    Raises:
        UserError: the first thing that cannot work. Nothing was sent then.
    """
    check_cluster(cluster)
    check_tracking(config.tracking)
    check_path("run_dir", config.run_dir)
    run_dir = Path(config.run_dir).absolute()
    check_no_secrets("the configuration", config)
    check_no_secrets("the cluster file", cluster)
    recorded = as_recorded(config)
    shards = check_run(recorded, cluster.world_size)
    if is_finished(recorded):
        return f"{config.run_dir} is finished: nothing to do"
    check_writable("run_dir", run_dir)
    local = [folder.path for folder in shards.folders if not folder.remote]
    parent = [("init.from_run", split_source(config.init.from_run)[0])] if config.init.from_run else []
    check_shared(cluster, [("run_dir", run_dir), *(("data.path", path) for path in local), *parent])
    check_lead_time(config, cluster, shards)
    check_start(config, shards)
    submission = submission_of_run(run_dir)
    script = train_script(
        cluster,
        run_dir=run_dir,
        work_dir=Path.cwd(),
        arguments=["--config", str(submission.config_file)],
        job_name=job_name_of(cluster, run_dir),
    )
    if dry_run:
        return script.rstrip("\n")
    check_partition(cluster, cluster.nodes, cluster.time_limit)
    check_no_active_job(submission)
    submission.write(script, config_as_dict(dataclasses.replace(config, run_dir=str(run_dir))))
    environment = slurm.submission_environment(stated_options(cluster))
    try:
        slurm.check_script(submission.script, environment)
        job_id = slurm.submit(submission.script, environment)
    except UserError:
        remove_if_empty(submission)
        raise
    submission.add_job(job_id)
    return (
        f"job {job_id}: {cluster.nodes} nodes x {cluster.processes_per_node} processes; "
        f"narrowbert-submit status {shlex.quote(config.run_dir)} (or logs, cancel)"
    )


def stated_options(cluster: ClusterConfig) -> list[str]:
    """Options of sbatch that the script states, among those that a user may have in the environment."""
    stated = {"partition": cluster.partition, "account": cluster.account, "qos": cluster.qos}
    named = [re.split("[=]", option.removeprefix("--"))[0] for option in cluster.sbatch_options]
    memory = ["mem-per-node"] if cluster.memory_per_node or cluster.prep.memory else []
    return [*(name for name, value in stated.items() if value is not None), *named, *memory]


def check_no_secrets(what: str, config: object, allowed: Collection[str] = ()) -> list[str]:
    """Refuse a configuration with a password in it: its snapshot stays in a folder that others may read.

    Args:
        what: the configuration's name in the message.
        config: a dataclass.
        allowed: keys that may hold one, in a file that nobody else may read.

    Returns:
        Those of ``allowed`` that do.

    Raises:
        UserError: naming the key.
    """
    plain = flatten(config_as_dict(config))
    shown = flatten(redact(config_as_dict(config)))
    found = [key for key, value in plain.items() if shown.get(key) != value]
    for key in found:
        if key not in allowed:
            raise UserError(
                f"{what} has a password or token in {key}, and a job keeps it in a file: "
                "give it by the environment or a credentials file instead"
            )
    return found


def check_shared(cluster: ClusterConfig, paths: Iterable[tuple[str, Path]]) -> None:
    """Whether every node will see the folders, as far as this machine can tell.

    Raises:
        UserError: naming the first that does not.
    """
    mounts = mounted_kinds()
    for name, path in paths:
        resolved = path.resolve()
        if cluster.shared_paths:
            if not any(resolved.is_relative_to(Path(shared).resolve()) for shared in cluster.shared_paths):
                raise UserError(
                    f"{name} {path} lies in none of cluster.shared_paths ({', '.join(cluster.shared_paths)}): "
                    "every node must see it"
                )
            continue
        kind = file_system(resolved, mounts)
        if kind in _LOCAL_FILE_SYSTEMS:
            raise UserError(
                f"{name} {path} is on a file system of this machine ({kind}), which compute nodes do not see: take a "
                "shared folder, or name it in cluster.shared_paths where it is one"
            )


def mounted_kinds() -> dict[Path, str]:
    """Kind of the file system at each mount point; empty where that is not known."""
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return {}
    kinds = {}
    for line in lines:
        fields = line.split(" ")
        # The kernel writes white space and backslashes as octal numbers.
        kinds[Path(re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), fields[1]))] = fields[2]
    return kinds


def file_system(path: Path, mounts: Mapping[Path, str]) -> str:
    """Kind of the file system that ``path`` is or will be on; empty where that is not known."""
    return next((mounts[parent] for parent in (path, *path.parents) if parent in mounts), "")


def check_lead_time(config: RunConfig, cluster: ClusterConfig, shards: Mixture) -> None:
    """Whether two steps and a checkpoint fit between Slurm's signal and the time limit.

    Raises:
        UserError: they do not, by what earlier checkpoints of the run took, or by the model's size.
    """
    series = read_metrics(Path(config.run_dir))
    saves = [value for _, value in series.get("checkpoint/seconds", [])[-5:]]
    steps = [value for _, value in series.get("train/step_seconds", [])[-5:]]
    if saves:
        seconds = max(saves)
        reason = f"the last checkpoints took up to {seconds:.0f} s"
    else:
        size = 12 * count_parameters(config.model, shards.vocab_size)  # fp32 weight and two moments
        seconds = size / _ASSUMED_BYTES_PER_SECOND
        reason = f"a checkpoint has {size / 1e9:.1f} GB"
    needed = round(2 * seconds + 3 * max(steps, default=0.0))  # two steps; a disk is slower on some days
    if cluster.signal_lead_seconds < needed:
        if needed > MAX_LEAD_S:
            remedy = f"{needed} are needed, but Slurm takes at most {MAX_LEAD_S}: write to a faster file system"
        elif needed > longest_lead(cluster):
            remedy = f"give {needed}, and a time_limit of more than that in place of {cluster.time_limit}"
        else:
            remedy = f"give {needed} or more"
        raise UserError(f"cluster.signal_lead_seconds {cluster.signal_lead_seconds} is too short, {reason}: {remedy}")


def check_partition(cluster: ClusterConfig, nodes: int, time_limit: str) -> None:
    """Whether the partition exists and can ever start the job; Slurm would take it and let it wait for good.

    Raises:
        UserError: it cannot, or Slurm does not answer.
    """
    known = slurm.partitions()
    default = [name for name, (_, is_default) in known.items() if is_default]
    names = cluster.partition.split(",") if cluster.partition else default
    if not names:
        raise UserError(f"this cluster has no default partition: give cluster.partition, one of {', '.join(known)}")
    for name in names:
        if name not in known:
            raise UserError(f"cluster.partition {name} does not exist: there are {', '.join(known)}")
    problems = [problem for name in names if (problem := _why_never(known[name][0], nodes, time_limit))]
    if len(problems) == len(names):
        raise UserError("; ".join(problems))


def _why_never(partition: slurm.Partition, nodes: int, time_limit: str) -> str:
    most = min(partition.total_nodes, partition.total_nodes if partition.max_nodes is None else partition.max_nodes)
    if not partition.is_up:
        return f"partition {partition.name} takes no jobs now"
    if nodes > most:
        return f"cluster.nodes is {nodes}: partition {partition.name} gives a job at most {most}"
    if partition.max_seconds is not None and seconds_of(time_limit) > partition.max_seconds:
        return (
            f"time limit {time_limit} is more than the {partition.max_seconds // 60} minutes of partition "
            f"{partition.name}"
        )
    return ""
