"""Slurm's clients: thin, and none waits for ever."""

import dataclasses
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_prep.contract.command_line import UserError, one_line

TIMEOUT_S = 30.0
"""Seconds a client may take; NARROWBERT_SLURM_TIMEOUT has another number for a slow controller."""

ACTIVE_STATES = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "STOPPED",
                 "RESIZING", "SIGNALING", "STAGE_OUT", "SPECIAL_EXIT", "REQUEUE_FED", "RESV_DEL_HOLD"}  # fmt: skip


class SlurmError(UserError):
    """A client that is missing, refused the call or did not answer in time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What Slurm says of a job."""

    job_id: str
    """Its number; of an array's element NUMBER_INDEX, of elements that wait NUMBER_0-31."""
    state: str
    """PENDING, RUNNING, COMPLETED, ..."""
    reason: str = ""
    """Why it is pending or has failed; empty where Slurm says nothing."""
    restarts: int | None = None
    """How often it was put back into the queue; None where that is not known."""
    elapsed: str = ""
    """Time since its newest start."""
    time_limit: str = ""
    """Time it may take."""
    nodes: str = ""
    """Where it runs or ran."""
    exit_code: str = ""
    """CODE:SIGNAL, once it has ended."""

    @property
    def is_active(self) -> bool:
        """Whether it waits, runs or will run again."""
        return self.state in ACTIVE_STATES


def call(program: str, *argv: str, environment: Mapping[str, str] | None = None) -> str:
    """What a client surveys.

    Raises:
        SlurmError: it is not installed, failed, or did not answer in time.
    """
    if shutil.which(program) is None:
        raise SlurmError(f"there is no {program} on this machine: use narrowbert-submit where Slurm's commands are")
    limit = _timeout()
    try:
        ended = subprocess.run(
            [program, *argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit, check=False,
            env=None if environment is None else dict(environment), errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{program} had no answer from Slurm's controller in {limit:g} s: try again later") from error
    except OSError as error:
        raise SlurmError(f"{program} cannot be started: {error.strerror}") from error
    if ended.returncode:
        said = one_line(ended.stderr) or f"exit code {ended.returncode}"
        raise SlurmError(f"{program}: {re.sub(rf'{program}: (error: )?', '', said)}")
    return ended.stdout


def _timeout() -> float:
    text = os.environ.get("NARROWBERT_SLURM_TIMEOUT", str(TIMEOUT_S))
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not 0 < limit <= 3600:
        raise UserError(f"NARROWBERT_SLURM_TIMEOUT is '{text}': give seconds, more than 0 and at most 3600")
    return limit


def submission_environment(stated: Sequence[str]) -> dict[str, str]:
    """The environment of sbatch: without variables that would change what the script states.

    sbatch takes ``SBATCH_*`` before a script's own lines, and inside of a job ``SLURM_*`` describe that job.
    ``stated`` names the options of the script, such as ``partition``; of those and of everything that the
    script always sets nothing is passed on.
    """
    free = {"account", "partition", "qos", "reservation", "constraint", "exclude", "mem-per-node", "clusters"}
    kept = {f"SBATCH_{name.replace('-', '_').upper()}" for name in free - set(stated)}
    ours = {"SLURM_CONF", "SLURM_JWT", "SLURM_CLUSTERS"}
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SBATCH_", "SLURM_")) or name in kept or name in ours
    }


def check_script(script: Path, environment: Mapping[str, str]) -> None:
    """Let Slurm judge a batch script without sending it.

    Raises:
        SlurmError: Slurm would not take it.
    """
    call("sbatch", "--test-only", str(script), environment=environment)


def submit(script: Path, environment: Mapping[str, str], *options: str, arguments: Sequence[str] = ()) -> str:
    """Send a batch script, with ``arguments`` to it; the job's id.

    Raises:
        SlurmError: Slurm did not take it.
    """
    try:
        printed = call("sbatch", "--parsable", *options, str(script), *arguments, environment=environment)
    except SlurmError as error:
        if isinstance(error.__cause__, subprocess.TimeoutExpired):
            raise SlurmError(f"{error}; whether it got the job is not known, look with squeue") from error
        raise
    match = re.match(r"\d+", printed)
    if match is None:
        raise SlurmError(f"sbatch printed no job id but '{one_line(printed)}'")
    return match[0]


def cancel(job_ids: Sequence[str]) -> None:
    """End jobs at once.

    Raises:
        SlurmError: Slurm did not take the order.
    """
    call("scancel", *job_ids)


def signal_batch(job_id: str, name: str) -> None:
    """Send a signal to the batch script of a running job.

    Raises:
        SlurmError: Slurm did not take the order.
    """
    call("scancel", f"--signal={name}", "--batch", job_id)


def find_jobs(job_ids: Sequence[str]) -> list[Job]:
    """What Slurm knows of the jobs: the controller's records, before them the accounts of those it has forgotten.

    A job that neither knows any more is left out.

    Raises:
        SlurmError: the controller does not answer.
    """
    found: list[Job] = []
    forgotten: list[str] = []
    for job_id in job_ids:
        try:
            found += parse_scontrol(call("scontrol", "--oneliner", "show", "job", job_id))
        except SlurmError as error:
            if "Invalid job id" not in str(error):
                raise
            forgotten.append(job_id)
    return [*(_from_accounting(forgotten) if forgotten else []), *found]


def _from_accounting(job_ids: Sequence[str]) -> list[Job]:
    fields = "JobID,State,Elapsed,Timelimit,NodeList,ExitCode"
    argv = ["--noheader", "--parsable2", "--allocations", f"--format={fields}", f"--jobs={','.join(job_ids)}"]
    try:
        printed = call("sacct", *argv)
    except SlurmError:  # this cluster keeps no accounts
        return []
    rows = [line.split("|") for line in printed.splitlines() if line.count("|") == fields.count(",")]
    return [
        Job(
            job_id=row[0], state=state_in_accounts(row[1].split()[0]), elapsed=row[2], time_limit=row[3], nodes=row[4],
            exit_code=row[5],
        )
        for row in rows
    ]  # fmt: skip


def state_in_accounts(state: str) -> str:
    """State of a job that the controller does not know: accounts may have missed its end."""
    return f"{state} IN THE ACCOUNTS ONLY" if state in ACTIVE_STATES else state


def parse_scontrol(printed: str) -> list[Job]:
    """The jobs of ``scontrol --oneliner show job``."""
    jobs = []
    for line in printed.splitlines():

        def field(name: str, line: str = line) -> str:
            match = re.search(rf"(?:^|\s){name}=(\S*)", line)
            return match[1] if match and match[1] not in ("(null)", "None", "N/A") else ""

        if not field("JobId"):
            continue
        element = field("ArrayTaskId").split("%")[0]  # of those that wait: 0-31%16, the throttle of the array behind %
        jobs.append(
            Job(
                job_id=f"{field('ArrayJobId')}_{element}" if element else field("JobId"),
                state=field("JobState"),
                reason=field("Reason"),
                restarts=int(field("Restarts") or 0),
                elapsed=field("RunTime"),
                time_limit=field("TimeLimit"),
                nodes=field("NodeList"),
                exit_code=field("ExitCode"),
            )
        )
    return jobs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Partition:
    """The limits of a partition."""

    name: str
    """Its name."""
    total_nodes: int
    """Nodes it has."""
    max_nodes: int | None
    """Nodes a job may have; None is no limit."""
    max_seconds: int | None
    """Time a job may take; None is no limit."""
    is_up: bool
    """Whether it takes jobs."""


def max_array_size() -> int | None:
    """The number that indices of an array stay below; None where Slurm does not say.

    Raises:
        SlurmError: the controller does not answer.
    """
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", call("scontrol", "show", "config"), re.MULTILINE)
    return int(match[1]) if match else None


def partitions() -> dict[str, tuple[Partition, bool]]:
    """Every partition by name, each with whether it is the default.

    Raises:
        SlurmError: the controller does not answer.
    """
    from cluster.config import seconds_of

    found = {}
    for line in call("scontrol", "--oneliner", "show", "partition").splitlines():
        fields = dict(part.split("=", 1) for part in line.split() if "=" in part)
        if "PartitionName" not in fields:
            continue
        max_nodes, max_time = fields.get("MaxNodes", "UNLIMITED"), fields.get("MaxTime", "UNLIMITED")
        partition = Partition(
            name=fields["PartitionName"],
            total_nodes=int(fields.get("TotalNodes", "0")),
            max_nodes=int(max_nodes) if max_nodes.isdigit() else None,
            max_seconds=None if max_time in ("UNLIMITED", "INFINITE") else seconds_of(max_time),
            is_up=fields.get("State", "UP") == "UP",
        )
        found[partition.name] = (partition, fields.get("Default") == "YES")
    return found
