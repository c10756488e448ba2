"""A real SLURM on this machine: slurmctld and two virtual nodes in a temporary folder, up in about a second.

No systemd, no cgroups, no accounting, an own munge with an own key. Debian and Ubuntu: apt-get install
--no-install-recommends munge slurmctld slurmd slurm-client. Needs root.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from helpers import command, quiet_environment

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "srun")
NODES = ("node1", "node2")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/munge/socket,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd.%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=0,batch_sched_delay=0
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{user_signal}
JobRequeue=1
FirstJobId={first_job}
KillWait={kill_wait}
MinJobAge=600
InactiveLimit=0
SlurmctldTimeout=30
SlurmdTimeout=30
MessageTimeout=10
PropagateResourceLimits=NONE
MailProg=/bin/true
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 Boards=1 SocketsPerBoard=1 "
    "CoresPerSocket=4 ThreadsPerCore=1 RealMemory=8000 State=UNKNOWN\n"
)
PARTITION = "PartitionName={name} Nodes=node[1-{count}] MaxTime=INFINITE DefaultTime=10 State=UP {rest}\n"


def missing() -> str | None:
    """Why a cluster cannot be started here, or None."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if absent:
        return f"no {', '.join(absent)}: apt-get install --no-install-recommends munge slurmctld slurmd slurm-client"
    return None if os.geteuid() == 0 else "a cluster of this machine's own needs root"


class Machine:
    """One cluster. `user_signal`: whether preemption sends the jobs' own signal before SIGTERM."""

    def __init__(
        self, root: Path, user_signal: bool = True, grace: int = 20, nodes: int = len(NODES)
    ) -> None:
        self.root = root
        self.nodes = [f"node{number}" for number in range(1, nodes + 1)]
        self.environment = {**quiet_environment(), "PATH": PATH, "SLURM_CONF": str(root / "slurm.conf")}
        self.host = socket.gethostname().split(".")[0]
        self._write(user_signal, grace)

    def start(self) -> None:
        """Starts the daemons and waits until both nodes are idle; raises RuntimeError with their logs."""
        for folder in ("munge", "state", "log", "run", *(f"spool.{name}" for name in self.nodes)):
            (self.root / folder).mkdir()
        (self.root / "munge/key").write_bytes(os.urandom(128))
        (self.root / "munge/key").chmod(0o600)
        parts = {
            "key-file": "key",
            "socket": "socket",
            "pid-file": "pid",
            "log-file": "log",
            "seed-file": "seed",
        }
        self.run("munged", "--num-threads=2", *(f"--{k}={self.root}/munge/{v}" for k, v in parts.items()))
        self.run("slurmctld", "-f", self.root / "slurm.conf")
        for name in self.nodes:
            self.run("slurmd", "-f", self.root / "slurm.conf", "-N", name)
        try:
            self.wait(lambda: self.run("sinfo", "-hNplow", "-o%T").split() == ["idle"] * len(self.nodes), 30)
        except TimeoutError:
            raise RuntimeError(self.logs()) from None

    def stop(self) -> None:
        """Cancels what runs and stops exactly the daemons that start() started."""
        with suppress(RuntimeError, TimeoutError):  # it may never have started
            self.clear()
        daemons = [*self.root.glob("run/*.pid"), self.root / "munge/pid"]
        pids = [int(path.read_text()) for path in daemons if path.exists() and path.read_text().strip()]
        for number in (signal.SIGTERM, signal.SIGKILL):
            pids += self._steps()
            for pid in pids:
                if Path(f"/proc/{pid}").exists():
                    os.kill(pid, number)
            end = time.monotonic() + 8
            while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < end:
                time.sleep(0.05)

    def _steps(self) -> list[int]:
        """The slurmstepd processes of this cluster; one that could not reach its controller stays for long."""
        result = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if f"SLURM_CONF={self.root}/".encode() in path.read_bytes():
                    name = (path.parent / "comm").read_text().strip()
                    result += [int(path.parent.name)] if name == "slurmstepd" else []
        return result

    def clear(self) -> None:
        """Ends all jobs and waits until they are gone."""
        for job in self.squeue():
            self.run("scancel", job.split("_")[0], check=False)
        self.wait(lambda: not self.squeue(), 60)

    def run(self, *args: object, check: bool = True) -> str:
        """Runs a command of SLURM's and returns its output."""
        done = subprocess.run(
            [*map(str, args)], capture_output=True, text=True, env=self.environment, timeout=60, check=False
        )
        if check and done.returncode:
            raise RuntimeError(f"{args}: {done.stderr}\n{self.logs()}")
        return done.stdout

    def script(self, name: str, *args: object) -> subprocess.CompletedProcess:
        """Runs one of the project's scripts where SLURM's commands find this cluster."""
        return subprocess.run(
            command(name, *args),
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=120,
            check=False,
        )

    def squeue(self) -> dict[str, str]:
        """State per job that is not over; elements of an array one by one."""
        lines = self.run("squeue", "-hr", "-o%i %T").splitlines()
        return dict(line.split() for line in lines)

    def show(self, job: str) -> dict[str, str]:
        """The fields of a job as scontrol shows them."""
        fields = self.run("scontrol", "-o", "show", "job", job).split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def block(self, nodes: int = 2) -> str:
        """Submits a job of the high partition that preempts `nodes` nodes; returns its id."""
        job = self.run(
            "sbatch",
            "--parsable",
            "-phigh",
            f"-N{nodes}",
            "--exclusive",
            "-o/dev/null",
            "--wrap",
            "sleep 600",
        )
        return job.strip()

    def wait(self, condition: Callable[[], Any], seconds: float = 90) -> Any:
        """Waits until `condition()` is true and returns its value; raises TimeoutError with the daemons' logs."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := condition():
                return value
            time.sleep(0.1)
        raise TimeoutError(f"waited {seconds} s; jobs {self.squeue()}\n{self.logs()}")

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        ends = [f"{path.name}: {path.read_text()[-1500:]}" for path in sorted(self.root.glob("log/*"))]
        return "\n".join(ends)

    def _write(self, user_signal: bool, grace: int) -> None:
        self.root.chmod(0o755)  # munged insists that all may enter the folder of its socket
        port = _free_ports(1 + len(self.nodes))
        option = "SlurmctldParameters=preempt_send_user_signal" if user_signal else ""
        names = {"host": self.host, "port": port, "root": self.root, "user_signal": option, "kill_wait": 5}
        first_job = 1 + os.getpid() % 10000  # ports follow from it, and other clusters may share this machine
        text = CONFIG.format(**names, first_job=first_job)
        for number, name in enumerate(self.nodes, 1):
            text += NODE.format(name=name, host=self.host, port=port + number)
        low = f"Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}"
        text += PARTITION.format(name="low", count=len(self.nodes), rest=low)
        text += PARTITION.format(
            name="high", count=len(self.nodes), rest="Default=NO PriorityTier=10 PreemptMode=OFF"
        )
        (self.root / "slurm.conf").write_text(text)


@contextmanager
def cluster(user_signal: bool = True, nodes: int = len(NODES)) -> Iterator[Machine]:
    """A started cluster in a short path of its own (sockets allow 108 characters); skips where none can start."""
    if reason := missing():
        pytest.skip(reason)
    root = Path(tempfile.mkdtemp(prefix="slurm-"))
    machine = Machine(root, user_signal, nodes=nodes)
    try:
        try:
            machine.start()
        except (RuntimeError, OSError) as error:
            pytest.skip(f"SLURM does not start here: {error}")
        yield machine
    finally:
        machine.stop()
        shutil.rmtree(root, ignore_errors=True)


def _free_ports(count: int) -> int:
    """The first of `count` TCP ports in a row that nobody listens on now."""
    for first in range(20000 + os.getpid() % 1000 * 8, 32000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise RuntimeError("no free ports")


def events(run: Path) -> list[dict[str, Any]]:
    """The events of a run directory."""
    path = run / "submissions.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def leftovers(folder: Path) -> list[str]:
    """Processes that name the folder on their command line."""
    result = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(folder) in text:
            result.append(f"{path.parent.name}: {text}")
    return result
