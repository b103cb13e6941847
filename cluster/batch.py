"""Renders batch scripts from the templates beside this file. Whatever comes from a user is quoted here."""

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.config import NAME, ClusterConfig, check_path

_HERE = Path(__file__).parent
_MODULES_SH = """\
if ! command -v module >/dev/null; then
  for file in /etc/profile.d/modules.sh /etc/profile.d/lmod.sh /usr/share/lmod/lmod/init/bash; do
    # shellcheck source=/dev/null
    [ -r "$file" ] && . "$file" && break
  done
fi"""


def train_script(
    config: ClusterConfig, *, run_dir: Path, work_dir: Path, arguments: Sequence[str], job_name: str
) -> str:
    """The batch script of a training job.

    Args:
        config: checked by ``check_cluster``.
        run_dir: absolute.
        work_dir: folder in which the ranks start; absolute.
        arguments: of ``narrowbert train``.
        job_name: as ``NAME`` allows.

    Raises:
        UserError: ``run_dir`` cannot stand in a script.
    """
    directives = {
        "job-name": job_name,
        **_shared_directives(config),
        "nodes": config.nodes,
        "ntasks-per-node": config.processes_per_node,
        "cpus-per-task": config.cpus_per_process,
        "gpus-per-node": config.gpus_per_node or None,
        "mem": config.memory_per_node,
        "time": config.time_limit,
        # To the batch shell alone (B): it passes the signal on and waits.
        "signal": f"B:USR1@{config.signal_lead_seconds}",
        "output": file_pattern("run_dir", run_dir / "submission" / "logs") + "/job-%j.out",
    }
    container, prefix = _container(config)
    return _render(
        "train.sh.template",
        DIRECTIVES=_directives(directives, [*(["--exclusive"] if config.exclusive else []), *config.sbatch_options]),
        RUN_DIR=shlex.quote(str(run_dir)),
        WORK_DIR=shlex.quote(str(work_dir)),
        COMMAND=shlex.join([*prefix, *_python(config), "-P", "-m", "pipeline", "train", *arguments]),
        CONTAINER_OPTIONS=shlex.join(container),
        NODES=str(config.nodes),
        PROCESSES_PER_NODE=str(config.processes_per_node),
        CPUS_PER_PROCESS=str(config.cpus_per_process),
        MAX_CRASHES=str(config.max_crashes),
        MAX_REQUEUES=str(config.max_requeues),
        CONTINUE_BY=config.continue_by,
        SETUP=_setup(config),
    )


def prep_script(config: ClusterConfig, *, submission: Path, work_dir: Path, arguments: Sequence[str]) -> str:
    """The batch script of every stage of preparation; ``sbatch prep.sh STAGE PARTS`` says which.

    Args:
        config: checked by ``check_cluster``.
        submission: folder of the preparation's jobs; absolute.
        work_dir: folder in which it runs; absolute.
        arguments: the configuration's, as ``narrowbert-prep shards`` takes them.
    """
    directives = {
        **_shared_directives(config),
        "nodes": 1,
        "ntasks": 1,
        "cpus-per-task": config.prep.cpus,
        "mem": config.prep.memory,
        "time": config.prep.time_limit,
    }
    container, prefix = _container(config)
    # A container of pyxis belongs to srun.
    start = ["srun", "--ntasks=1", "--mpi=none", *container] if container else []
    return _render(
        "prep.sh.template",
        DIRECTIVES=_directives(directives, config.sbatch_options),
        WORK_DIR=shlex.quote(str(work_dir)),
        COMMAND=shlex.join([*start, *prefix, *_python(config), "-P", "-m", "cluster.prep_stage", *arguments]),
        SUBMISSION=shlex.quote(str(submission)),
        MAX_CRASHES=str(config.max_crashes),
        MAX_REQUEUES=str(config.max_requeues),
        SETUP=_setup(config),
    )


def job_name_of(config: ClusterConfig, folder: Path) -> str:
    """The configured name of a job, or one made of its folder's name."""
    if config.job_name is not None:
        return config.job_name
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.name).lstrip("_.-")[:64]
    return name if NAME.fullmatch(name) else "narrowbert"


def file_pattern(name: str, folder: Path) -> str:
    """A folder as sbatch's --output takes it: there % begins a replacement, and %% stands for one.

    Raises:
        UserError: the path cannot be given to sbatch; ``name`` is the option to name.
    """
    check_path(name, str(folder))
    return str(folder).replace("%", "%%")


def _shared_directives(config: ClusterConfig) -> dict[str, str | int | None]:
    return {"partition": config.partition, "account": config.account, "qos": config.qos}


def _directives(values: Mapping[str, str | int | None], options: Sequence[str]) -> str:
    """#SBATCH lines; sbatch reads quotes in them as a shell would, but replaces nothing."""
    lines = [f"--{name}={_directive_value(value)}" for name, value in values.items() if value is not None]
    return "\n".join(f"#SBATCH {line}" for line in [*lines, "--requeue", "--open-mode=append", *options])


def _directive_value(value: str | int) -> str:
    text = str(value)
    if re.fullmatch(r"[A-Za-z0-9_.,:@%+=/-]+", text):
        return text
    return '"' + text.replace('"', '\\"') + '"'


def _python(config: ClusterConfig) -> list[str]:
    if config.python is not None:
        return [config.python]
    return ["python"] if config.container != "none" else [sys.executable]


def _container(config: ClusterConfig) -> tuple[list[str], list[str]]:
    """Options of srun, and what stands in front of the command."""
    if config.container_image is None:
        return [], []
    mounts = config.container_mounts
    if config.container == "pyxis":
        mounted = [f"--container-mounts={','.join(mounts)}"] if mounts else []
        return [f"--container-image={config.container_image}", *mounted], []
    bound = [part for mount in mounts for part in ("--bind", mount)]
    gpus = ["--nv"] if config.gpus_per_node else []
    return [], ["apptainer", "exec", *gpus, *bound, config.container_image]


def _setup(config: ClusterConfig) -> str:
    lines = []
    if config.setup_script is not None:
        lines += [
            "# shellcheck source=/dev/null",
            f". {shlex.quote(config.setup_script)} || {{ say 'cluster.setup_script failed'; exit 2; }}",
        ]
    if config.modules:
        lines += [
            _MODULES_SH,
            f"module load {shlex.join(config.modules)} || {{ say 'cluster.modules failed'; exit 2; }}",
        ]
    for variable in config.environment:
        name, value = variable.split("=", 1)
        lines.append(f"export {name}={shlex.quote(value)}")
    return "\n".join(lines) or "# nothing to load"


def _render(template: str, **values: str) -> str:
    text = (_HERE / template).read_text(encoding="utf-8")
    return re.sub(r"@([A-Z_]+)@", lambda match: values[match[1]], text)
