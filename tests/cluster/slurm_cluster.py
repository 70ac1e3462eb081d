"""A real Slurm of two nodes on this machine: munge, slurmctld and a slurmd per node, in one folder, as one user."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.free_port import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
NODES = ("n1", "n2")
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # where distributions keep daemons
_SECONDS = 300

# No cgroups and no systemd: a container has neither. Whoever is preempted has a minute to save.
_SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
SlurmdParameters=config_overrides
KillWait=5
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 State=UP
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF State=UP
"""


def missing_programs() -> list[str]:
    """The programs of Slurm and munge that this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]


class SlurmCluster:
    """A running cluster.

    Attributes:
        environment: What a user's shell has.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _PATH}

    def run(self, *command: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None) -> str:
        """What a command of a user says."""
        done = subprocess.run(
            command, env=self.environment | (environment or {}), cwd=cwd, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job."""
        words = self.run("scontrol", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, number: str, *states: str, meanwhile: Callable[[], str] = str) -> dict[str, str]:
        """The job, once it is in one of ``states``; ``meanwhile`` tells what to show if it never is."""
        deadline = time.monotonic() + _SECONDS
        while (job := self.job(number))["JobState"] not in states:
            assert time.monotonic() < deadline, f"{job}\n{meanwhile()}"
            time.sleep(0.2)
        return job


@contextmanager
def slurm_cluster() -> Iterator[SlurmCluster]:
    """Start the daemons, in a folder whose paths are short enough for sockets, and end them."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    munge = folder / "munge"
    for path in (munge, folder / "state", *(folder / f"spool-{name}" for name in NODES)):
        path.mkdir(mode=0o700)
    (munge / "key").touch(0o600)
    (munge / "key").write_bytes(os.urandom(1024))
    (folder / "cgroup.conf").touch()
    gpus = [folder / f"gpu{number}" for number in range(2)]  # a file stands for a device
    for gpu in gpus:
        gpu.touch()
    (folder / "gres.conf").write_text(f"NodeName={','.join(NODES)} Name=gpu File={folder}/gpu[0-1]\n")
    host = socket.gethostname().partition(".")[0]
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs=8 Gres=gpu:{len(gpus)}"
        for name in NODES
    )
    (folder / "slurm.conf").write_text(
        _SLURM_CONF.format(host=host, controller_port=free_port(), user=getpass.getuser(), folder=folder, nodes=nodes)
    )
    cluster = SlurmCluster(folder)
    files = {name: f"{munge}/{name}" for name in ("socket", "pid", "log", "seed")}
    daemons = [
        ["munged", "--foreground", "--force", f"--socket={files['socket']}", f"--key-file={munge}/key",
         f"--pid-file={files['pid']}", f"--log-file={files['log']}", f"--seed-file={files['seed']}"],
        ["slurmctld", "-D"],
        *(["slurmd", "-D", "-N", name] for name in NODES),
    ]  # fmt: skip
    running: list[subprocess.Popen[bytes]] = []
    try:
        with (folder / "daemons.log").open("wb") as log:
            for command in daemons:
                running.append(subprocess.Popen(command, env=cluster.environment, stdout=log, stderr=log))
                if command[0] == "munged":
                    _wait(lambda: Path(files["socket"]).exists(), cluster)
        _wait(lambda: _idle(cluster) == len(NODES), cluster)
        yield cluster
    finally:
        for daemon in reversed(running):
            daemon.terminate()
        for daemon in running:
            daemon.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def _idle(cluster: SlurmCluster) -> int:
    done = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--partition=low", "--states=idle", "--format=%N"],
        env=cluster.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return len(done.stdout.split())


def _wait(ready: Callable[[], bool], cluster: SlurmCluster) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < deadline, (cluster.folder / "daemons.log").read_text(errors="replace")[-4000:]
        time.sleep(0.1)
