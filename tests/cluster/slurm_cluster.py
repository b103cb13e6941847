"""A real Slurm on this machine: munged, slurmctld and four slurmd, started and taken down by the tests themselves.

With accounts if wanted: MariaDB and slurmdbd beside them.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

NODES = ("nbnode0", "nbnode1", "nbnode2", "nbnode3")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
ACCOUNTING_PROGRAMS = ("mariadbd", "slurmdbd", "sacct", "sacctmgr")
PACKAGES = "slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins slurmdbd mariadb-server-core"
HOSTS = Path("/etc/hosts")
MARK = "# narrowbert test cluster of process"

CONFIGURATION = """\
ClusterName=narrowbert
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
JobRequeue=1
SlurmdTimeout=5
SlurmctldTimeout=30
KillWait=10
MessageTimeout=10
MinJobAge=600
MailProg=/bin/true
JobCompType=jobcomp/none
{accounting}
GresTypes=gpu
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30
PartitionName=harsh Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=CANCEL
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
PartitionName=short Nodes=ALL MaxNodes=1 MaxTime=10 State=UP
PartitionName=closed Nodes=ALL State=DOWN
"""

WITH_ACCOUNTS = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={folder}/munge.socket"""

ACCOUNTS = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=root
StorageLoc=accounts
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
"""


def missing(*, accounting: bool) -> str:
    """What keeps a Slurm from running here, with what would mend it; empty where nothing does."""
    wanted = PROGRAMS + ACCOUNTING_PROGRAMS if accounting else PROGRAMS
    absent = [program for program in wanted if shutil.which(program, path=_path()) is None]
    if absent:
        return f"no {', '.join(absent)}: apt-get install {PACKAGES}"
    if os.geteuid() != 0:
        return "Slurm's daemons and /etc/hosts need root"
    return ""


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


_PATIENCE = 4
"""How much longer anything may take beside other tests on a slow machine."""


class SlurmCluster:
    """Four nodes with eight cores and two pretend GPUs each, all on this machine.

    Args:
        accounting: keep accounts of jobs in a database.
    """

    def __init__(self, *, accounting: bool = False) -> None:
        self._accounting = accounting
        self.folder = Path(tempfile.mkdtemp(prefix="narrowbert-slurm-", dir="/tmp"))
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _path()}
        self._mark = f"{MARK} {os.getpid()} {self.folder.name}"
        self._database_port = _free_port()
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    # ------------------------------------------------------------------------------- start and stop

    def start(self) -> None:
        """Start everything; returns when all nodes are idle."""
        self.folder.chmod(0o755)  # munged wants its socket reachable
        self._write_configuration()
        self._name_nodes()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        options = [f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        self._start(
            "munged", "munged", "--foreground", "--num-threads=4", f"--socket={self.folder}/munge.socket", *options
        )
        self.wait_for((self.folder / "munge.socket").exists, "munged", 20)
        if self._accounting:
            self._start_accounts()
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        self.wait_for(lambda: self.node_states().count("idle") == len(NODES), "idle nodes", 60)

    def _start_accounts(self) -> None:
        data = self.folder / "database"
        data.mkdir()
        # Without its tables of users a database is made by its server's first start.
        self._start(
            "mariadbd", "mariadbd", "--no-defaults", f"--datadir={data}", "--user=root", "--skip-grant-tables",
            "--bind-address=127.0.0.1", f"--port={self._database_port}", f"--socket={self.folder}/mariadb.socket",
            f"--pid-file={self.folder}/mariadb.pid", "--innodb-buffer-pool-size=32M",
        )  # fmt: skip
        self.wait_for((self.folder / "mariadb.socket").exists, "MariaDB", 60)
        self._start("slurmdbd", "slurmdbd", "-D")
        self.wait_for(self._add_cluster, "slurmdbd", 60)

    def _add_cluster(self) -> bool:
        self.client("sacctmgr", "--immediate", "add", "cluster", "narrowbert", check=False)
        return "narrowbert" in self.client("sacctmgr", "--noheader", "show", "cluster", check=False)

    def stop(self) -> None:
        """End every process that was started here, by its id, and take back what was changed."""
        try:
            if "slurmctld" in self._daemons and self._daemons["slurmctld"].poll() is None:
                self.client("scancel", "--user=root", check=False)
                self.wait_for(lambda: not self.client("squeue", "--noheader"), "an empty queue", 15)
        except (AssertionError, subprocess.SubprocessError):
            pass  # they are killed below
        for daemon in reversed(self._daemons.values()):
            daemon.send_signal(signal.SIGCONT)
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(5)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for pid in self.processes():
            _kill(pid)
        _edit_hosts(lambda lines: [line for line in lines if not line.endswith(self._mark)])
        shutil.rmtree(self.folder, ignore_errors=True)

    def forget_jobs(self) -> None:
        """Start the controller anew, without the jobs it knew."""
        self.kill_controller()
        (self.folder / "state" / "job_state").unlink()
        self.start_controller()

    def start_controller(self) -> None:
        """Start slurmctld, with the state it left."""
        known = (self.folder / "state" / "job_state").exists()
        fresh = [] if known else ["-c"]
        self._start("slurmctld", "slurmctld", "-D", *fresh, "-f", self.environment["SLURM_CONF"])
        self.wait_for(lambda: "UP" in self.client("scontrol", "ping", check=False), "slurmctld", 30)

    def kill_controller(self) -> None:
        """SIGKILL slurmctld."""
        self._daemons["slurmctld"].kill()
        self._daemons["slurmctld"].wait()

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node."""
        self._start(node, "slurmd", "-D", "-N", node, "-f", self.environment["SLURM_CONF"])

    def kill_node(self, node: str, *, with_tasks: bool) -> None:
        """SIGKILL a node's slurmd; ``with_tasks``: and everything that runs there, as when the power goes."""
        self._daemons[node].kill()
        self._daemons[node].wait()
        if with_tasks:
            for pid in self.processes(node):
                _kill(pid)

    def _start(self, name: str, *argv: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as output:
            self._daemons[name] = subprocess.Popen(
                argv, env=self._full() | {"NARROWBERT_TEST_NODE": name}, stdin=subprocess.DEVNULL, stdout=output,
                stderr=output, start_new_session=True, preexec_fn=_die_with_parent,  # noqa: PLW1509 - the daemons start before any thread
            )  # fmt: skip

    def _write_configuration(self) -> None:
        host = socket.gethostname().split(".")[0]
        ports = [_free_port() for _ in range(len(NODES) + 1)]
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.1.{10 + number} Port={ports[number]} CPUs=8 Boards=1 "
            "SocketsPerBoard=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=4096 Gres=gpu:2 State=UNKNOWN"
            for number, node in enumerate(NODES)
        )
        accounting = "AccountingStorageType=accounting_storage/none"
        if self._accounting:
            port = _free_port()
            accounting = WITH_ACCOUNTS.format(port=port, folder=self.folder)
            accounts = self.folder / "slurmdbd.conf"  # slurmdbd looks for it beside slurm.conf
            accounts.write_text(
                ACCOUNTS.format(host=host, folder=self.folder, port=port, database_port=self._database_port)
            )
            accounts.chmod(0o600)
        (self.folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=host, folder=self.folder, nodes=nodes, controller_port=ports[-1], accounting=accounting
            )
        )
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        for number in range(2):
            (self.folder / f"gpu{number}").symlink_to("/dev/null")
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-1]\n")
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        for node in NODES:
            (self.folder / "spool" / node).mkdir()

    def _name_nodes(self) -> None:
        # Torch's rendezvous waits half an hour for a name that does not resolve.
        ours = [f"127.0.1.{10 + number} {node} {self._mark}" for number, node in enumerate(NODES)]
        _edit_hosts(lambda lines: [line for line in lines if not _is_stale(line)] + ours)

    # ------------------------------------------------------------------------------------------ use

    def _full(self) -> dict[str, str]:
        mine = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        return mine | self.environment

    def client(self, *argv: str, check: bool = True) -> str:
        """What one of Slurm's clients surveys."""
        ended = subprocess.run(
            argv, env=self._full(), timeout=30, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert not check or ended.returncode == 0, f"{argv}: {ended.stderr}"
        return ended.stdout

    def node_states(self) -> list[str]:
        """State of each node."""
        return self.client("sinfo", "--noheader", "--partition=main", "--Node", "--format=%T", check=False).split()

    def job(self, job_id: str) -> dict[str, str]:
        """Fields of ``scontrol show job``."""
        printed = self.client("scontrol", "--oneliner", "show", "job", job_id)
        return dict(part.split("=", 1) for part in printed.split() if "=" in part)

    def run_urgent_job(self) -> None:
        """Run a short job on all nodes that preempts what is there."""
        job_id = self.client(
            "sbatch", "--parsable", "--partition=urgent", "--nodes=4", "--exclusive", "--time=2",
            "--output=/dev/null", "--wrap=sleep 1",
        ).strip()  # fmt: skip
        self.wait_for_state(job_id, "COMPLETED", 90)

    def all_jobs(self) -> list[str]:
        """Ids of every job since the start."""
        return self.client("squeue", "--noheader", "--states=all", "--format=%A").split()

    def wait_for_state(self, job_id: str, states: str, seconds: float) -> dict[str, str]:
        """Wait until the job is in one of the states (``A|B``); its fields."""
        wanted = states.split("|")
        self.wait_for(lambda: self.job(job_id)["JobState"] in wanted, f"{states} of job {job_id}", seconds, job_id)
        return self.job(job_id)

    def wait_for(self, condition: Callable[[], object], what: str, seconds: float, job_id: str | None = None) -> None:
        """Poll until ``condition`` holds, which takes ``seconds`` at most on a machine that has nothing else to do."""
        deadline = time.monotonic() + _PATIENCE * seconds
        while not condition():
            told = self.client("scontrol", "show", "job", job_id, check=False) if job_id else ""
            assert time.monotonic() < deadline, f"no {what} in {_PATIENCE} times {seconds} s\n{told}"
            time.sleep(0.1)

    def processes(self, node: str | None = None) -> list[int]:
        """Processes that belong to this cluster (or one node): daemons, their helpers, and what jobs started."""
        marks = [str(self.folder).encode()]
        own = {daemon.pid for daemon in self._daemons.values() if daemon.poll() is None}
        if node is not None:
            marks = [f"NARROWBERT_TEST_NODE={node}\0".encode(), f"SLURMD_NODENAME={node}\0".encode()]
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and int(entry.name) not in own | {os.getpid()}:
                    environ = (entry / "environ").read_bytes()
                    if str(self.folder).encode() in environ and any(mark in environ for mark in marks):
                        found.append(int(entry.name))
            except OSError:
                continue
        return found


def _die_with_parent() -> None:
    """In a daemon: be killed when the tests are, even by a signal that lets no fixture end."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _edit_hosts(edit: Callable[[list[str]], list[str]]) -> None:
    lines = HOSTS.read_text().splitlines()
    HOSTS.write_text("\n".join(edit(lines)) + "\n")


def _is_stale(line: str) -> bool:
    """A line that a killed test process left."""
    if MARK not in line:
        return False
    pid = line.split(MARK)[1].split()[0]
    return not (pid.isdigit() and Path(f"/proc/{pid}/exe").exists())


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
