"""The process group of the training workers: device, backend, how they meet, and what they tell each other."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Literal, TypeVar

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from kexue_train.foundation.errors import ConfigError, KexueError, ResourceError

logger = logging.getLogger(__name__)

RENDEZVOUS_TIMEOUT = timedelta(minutes=5)
"""How long a rank waits for the others at the start."""
_MARGIN = timedelta(minutes=5)
_CPU = torch.device("cpu")
_FIRST_PORT, _PORTS = 20_000, 20_000
_OF_A_LAUNCHER = re.compile(
    r"(PET|TORCHELASTIC|TORCH_ELASTIC|OMPI|PMI|PMIX)_\w+"
    r"|((LOCAL|GROUP|ROLE|NODE|CROSS)_)?(RANK|SIZE|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|NCCL_COMM_ID"
)
_T = TypeVar("_T")


def choose_device(wanted: str) -> torch.device:
    """This worker's device: the first CUDA device for the first worker of a machine, and so on.

    ``auto`` takes CUDA devices if every worker of this machine has one of its own.

    Raises:
        ConfigError: If CUDA is asked for, and absent or short of devices.
    """
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cuda" and not visible:
        raise ConfigError(
            "train.device=cuda, but torch sees no CUDA device here; set train.device=cpu, or check the driver and "
            "the torch build"
        )
    if wanted == "cpu" or not visible:
        return torch.device("cpu")
    workers, devices = local_world_size(), max(visible, _devices_of_slurm(os.environ))
    if workers > devices:
        shortage = f"{workers} workers of this machine share {devices} CUDA device{'s' if devices > 1 else ''}"
        if wanted == "cuda":
            raise ConfigError(
                f"train.device=cuda, but {shortage}, and each needs one of its own; start {devices} here "
                "(train.num_workers), or set train.device=cpu"
            )
        logger.warning("%s: as train.device=auto, they train on the CPU; start %d to use CUDA", shortage, devices)
        return torch.device("cpu")
    # Slurm may show every worker its own device only, as number 0.
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % visible)
    torch.cuda.set_device(device)
    return device


def local_world_size() -> int:
    """Workers of this machine; those of all machines where the launcher does not say."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1)


def _devices_of_slurm(environ: Mapping[str, str]) -> int:
    """Return how many devices the tasks of this machine have together, though each may see its own only."""
    is_task = "SLURM_PROCID" in environ and "TORCHELASTIC_RUN_ID" not in environ
    return int(environ.get("SLURM_GPUS_ON_NODE", "0")) if is_task else 0


def choose_backend(wanted: Literal["auto", "nccl", "gloo"], device_type: str) -> str:
    """Who moves the tensors: NCCL between CUDA devices, gloo between CPUs.

    Raises:
        ConfigError: If NCCL is asked for on the CPU.
    """
    if wanted == "nccl" and device_type != "cuda":
        raise ConfigError(
            "train.workers.backend=nccl works between CUDA devices only; set train.workers.backend=auto, or gloo"
        )
    return wanted if wanted != "auto" else "nccl" if device_type == "cuda" else "gloo"


def join_process_group(backend: str, *, hang_timeout: float, device: torch.device = _CPU, alone: bool = False) -> None:
    """Join the group that the launcher's environment describes, or make one of one process.

    NCCL is told its device at once: it then connects here, where a failure has a message of its own, and not inside of
    the first collective.

    Args:
        backend: ``nccl`` or ``gloo``.
        hang_timeout: Seconds without progress after which the watchdog ends a worker; collectives wait longer, so
            that it is the watchdog that speaks first.
        device: This rank's.
        alone: Make a group of one, whatever the environment says.

    Raises:
        ConfigError: If the environment describes no whole group.
        ResourceError: If the ranks do not meet within ``RENDEZVOUS_TIMEOUT``, with the address.
    """
    device_id = device if backend == "nccl" else None
    if dist.is_initialized():  # Ray Train has set it up, without a device
        dist.distributed_c10d._get_default_group().bound_device_id = device_id
        return
    timeout = collective_timeout(hang_timeout)
    if alone or not has_launcher():
        os.environ.update({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"})
        store = dist.TCPStore(  # type: ignore[attr-defined]  # documented, not listed as exported
            "127.0.0.1", 0, 1, is_master=True, timeout=RENDEZVOUS_TIMEOUT
        )
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout, device_id=device_id)
        return
    if missing := {"RANK", "WORLD_SIZE", "MASTER_PORT"} - os.environ.keys():
        raise ConfigError(
            f"the environment describes a group of training workers without {' and '.join(sorted(missing))}; let a "
            "launcher such as torchrun set all of RANK, WORLD_SIZE and MASTER_PORT, or unset them to train alone"
        )
    rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    host, port = os.environ.setdefault("MASTER_ADDR", "127.0.0.1"), os.environ["MASTER_PORT"]
    use_interface_towards(host)
    try:
        store, *_ = next(rendezvous("env://", timeout=RENDEZVOUS_TIMEOUT))
        dist.init_process_group(
            backend, store=store, rank=int(rank), world_size=int(size), timeout=timeout, device_id=device_id
        )
    except (RuntimeError, ValueError) as error:
        raise ResourceError(
            f"rank {rank} of {size} on {socket.gethostname()} does not meet the others at {host}:{port} "
            f"({str(error).partition(chr(10))[0]}; waited at most {RENDEZVOUS_TIMEOUT.seconds} s). "
            "Check that all ranks were started, that the address is that of rank 0 and reachable from here, "
            "and that the port is free there"
        ) from None


def collective_timeout(hang_timeout: float) -> timedelta:
    """How long a collective waits for a rank; longer than the watchdog, whose first step takes longest."""
    return 3 * timedelta(seconds=hang_timeout) + _MARGIN


def be_alone() -> None:
    """Let the environment of this process describe a group of one, whatever a launcher has said."""
    kept = without_launcher(os.environ) | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"} | loopback_interfaces()
    os.environ.clear()
    os.environ.update(kept)


def has_launcher() -> bool:
    """Whether the environment of this process says that it is one of a group."""
    return bool({"RANK", "WORLD_SIZE"} & os.environ.keys())


def without_launcher(environ: Mapping[str, str]) -> dict[str, str]:
    """Return ``environ`` without what launchers tell their workers.

    Kubernetes' training operator, torchrun and MPI set such variables in whole containers and shells. Workers that are
    started there would wait for ranks that nobody starts, at an address that is not theirs.
    """
    return {name: value for name, value in environ.items() if not _OF_A_LAUNCHER.fullmatch(name)}


def loopback_interfaces() -> dict[str, str]:
    """Return the variables by which workers that are all on this machine talk over its loopback interface.

    No other interface has to be up, and neither the machine's name nor a choice that is meant for a cluster matters.
    """
    for name, addresses in psutil.net_if_addrs().items():
        if "127.0.0.1" in [address.address for address in addresses]:
            return dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME"), name)
    return {}


def use_interface_towards(host: str) -> None:
    """Let gloo use the network interface that leads to ``host``; by itself it takes the one the host's name means."""
    own = _own_address_towards(host)
    for name, addresses in psutil.net_if_addrs().items():
        found = [address.address.partition("%")[0] for address in addresses]  # without the zone of IPv6
        if own in found or (own.startswith("127.") and "127.0.0.1" in found):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            return


def _own_address_towards(host: str) -> str:
    """Return this machine's address on the way to ``host``, by IPv4 or IPv6; empty if there is no way."""
    try:
        targets = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)
    except OSError:
        return ""
    for family, kind, protocol, _, target in targets:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(target)  # sends nothing
                return str(probe.getsockname()[0]).partition("%")[0]
        except OSError:
            continue
    return ""


def slurm_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT of a task of ``srun``.

    Nothing if ``srun`` has not started this process.

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
    if per_node := environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE"):
        found["LOCAL_WORLD_SIZE"] = str(tasks_of_node(per_node, int(environ.get("SLURM_NODEID", "0"))))
    return {name: environ.get(name, value) for name, value in found.items()}


def tasks_of_node(per_node: str, number: int) -> int:
    """Return the tasks of a node, counted from 0, in Slurm's list of them: ``2(x3),1`` is 2, 2, 2 and 1."""
    counts = re.findall(r"(\d+)(?:\(x(\d+)\))?", per_node)
    return [int(tasks) for tasks, nodes in counts for _ in range(int(nodes or 1))][number]


def first_node(nodes: str) -> str:
    """Return the first name in Slurm's list of nodes: ``gpu[003-007,12],login`` starts with ``gpu003``."""
    match = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    if match is None:
        raise ValueError(f"{nodes!r} is no list of Slurm nodes")
    return re.sub(r"\[([^\]]*)\]", lambda numbers: re.split("[-,]", numbers[1])[0], match[0])


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum a tensor over all ranks, in place."""
    if dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values


def max_over_ranks(values: Tensor) -> Tensor:
    """The largest of each element over all ranks, in place."""
    if dist.get_world_size() > 1:
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


def same_on_all_ranks(value: _T) -> _T:
    """Rank 0's value on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def on_first_rank(function: Callable[[], _T]) -> _T:
    """What ``function`` returns on rank 0, which alone runs it, on every rank; its ``KexueError`` likewise."""
    result: _T | None = None
    problem: KexueError | None = None
    if dist.get_rank() == 0:
        try:
            result = function()
        except KexueError as error:
            problem = error
    result, problem = same_on_all_ranks((result, problem))
    if problem is not None:
        raise problem
    return result  # type: ignore[return-value]  # rank 0's
