"""The Ray cluster a run has joined or started, and its machines."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kexue_train.errors import ResourceError
from kexue_train.executor.interface import LOCAL_MACHINE

_SECONDS_TO_ANSWER = 6.0
# How a client of HTTP/2, which Ray speaks, begins, with an empty frame of settings; and how the type of such is told.
_GRPC_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_GRPC_SETTINGS = b"\4"


@dataclass(frozen=True)
class Node:
    """One alive machine of the cluster; its name is its IP address, which outlives drivers and restarts of Ray."""

    machine: str
    node_id: str
    cpus: float
    memory_bytes: float


def alive_nodes() -> list[Node]:
    """The nodes that can run tasks now (a head without CPUs cannot)."""
    import ray  # noqa: PLC0415  # a door

    return [
        Node(
            machine=node["NodeManagerAddress"],
            node_id=node["NodeID"],
            cpus=node["Resources"]["CPU"],
            memory_bytes=node["Resources"].get("memory", 0.0),
        )
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU", 0) > 0
    ]


def current_machine() -> str:
    """The name of the machine this task runs on, as ``Executor.machines`` has it; not for the driver of a cluster."""
    ray = sys.modules.get("ray")  # a worker of Ray has imported it, others need not pay for it
    if ray is None or not ray.is_initialized() or ray.get_runtime_context().worker.mode != ray.WORKER_MODE:
        return LOCAL_MACHINE
    return str(ray.util.get_node_ip_address())


def connect_ray(address: str | None, num_cpus: int | None) -> None:
    """Join the cluster at ``address`` (None: the one RAY_ADDRESS names) or start a local one; twice is as once.

    Raises:
        ResourceError: If Ray is not installed, or the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_task_oom_retries", "1")  # Ray's default is to retry a task that never fits without end
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_get_check_signal_interval_milliseconds", "100")  # Ray's default answers Ctrl-C after 1 s
    try:
        import ray  # noqa: PLC0415  # a door
    except ImportError:
        raise ResourceError(
            "Ray is not installed; install it with pip install 'kexue_train[cluster]', "
            "or run with --workers N on this machine alone"
        ) from None
    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        _require_reachable(address)
    # ray.init replaces the handlers of the main thread, after which a cancelled flow counts as crashed.
    on_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)} if on_main else {}
    try:
        ray.init(
            address=address or "local",  # None would also join a cluster that somebody started on this machine
            **({} if address else _local_cluster(num_cpus)),
            log_to_driver=False,
            logging_level="error",
            configure_logging=True,
        )
        atexit.register(ray.shutdown)  # before Ray's own, which waits half a second for output of the tasks
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster at {address}" if address else "a local Ray cluster"
        raise ResourceError(
            f"{where} cannot be reached or started ({_first_line(error)}); check 'ray status' and the address"
        ) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _require_reachable(address: str) -> None:
    """Refuse at once where ``ray.init`` would wait for minutes; names such as ``auto`` are left to Ray."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS_TO_ANSWER) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "0":
                connection.sendall(_GRPC_GREETING)
                if connection.recv(9)[3:4] != _GRPC_SETTINGS:
                    raise OSError("something answers there, but it is not Ray")
    except (OSError, OverflowError) as error:
        raise ResourceError(
            f"the Ray cluster at {address} cannot be reached ({error}); "
            "check that its head runs ('ray status' there) and that the address is the one 'ray start --head' printed"
        ) from None


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def _local_cluster(num_cpus: int | None) -> dict[str, Any]:
    return {
        "num_cpus": num_cpus,
        "include_dashboard": False,
        "object_store_memory": 200 * 2**20,  # tasks exchange file names, not data
        # Ray resolves 127.0.0.1 to the outer address, which a firewall may close; another loopback address stays one.
        "_node_ip_address": "127.0.0.2" if Path("/proc/net").exists() else None,
    }
