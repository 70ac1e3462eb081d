"""What ``srun`` tells a worker about its rank, in the words of torchrun."""

from __future__ import annotations

import re
from collections.abc import Mapping

_FIRST_PORT, _PORTS = 20_000, 20_000


def slurm_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT of a task that ``srun`` started; else nothing.

    A batch script has some of Slurm's variables, too, but no step. The port follows from the numbers of job and step,
    so that all tasks know it and two jobs on a machine hardly ever share it; MASTER_PORT, if set, has precedence.
    """
    if "RANK" in environ or not {"SLURM_PROCID", "SLURM_STEP_ID"} <= environ.keys():
        return {}
    tasks = environ.get("SLURM_STEP_NUM_TASKS") or environ["SLURM_NTASKS"]
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or environ["SLURM_NODELIST"]
    number = int(environ.get("SLURM_JOB_ID", "0")) * 31 + int(environ["SLURM_STEP_ID"])
    found = {
        "RANK": environ["SLURM_PROCID"],
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": environ["SLURM_LOCALID"],
        "MASTER_ADDR": first_node(nodes),
        "MASTER_PORT": str(_FIRST_PORT + number % _PORTS),
    }
    return {name: environ.get(name, value) for name, value in found.items()}


def first_node(nodes: str) -> str:
    """The first name in Slurm's list of nodes: ``gpu[003-007,12],login`` starts with ``gpu003``."""
    match = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    if match is None:
        raise ValueError(f"{nodes!r} is no list of Slurm nodes")
    return re.sub(r"\[([^\]]*)\]", lambda numbers: re.split("[-,]", numbers[1])[0], match[0])
