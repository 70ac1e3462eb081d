"""The Ray cluster a run has joined or started."""

from __future__ import annotations

import atexit
import logging
import os
import re
import secrets
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import psutil

from kexue_train.executor.interface import LOCAL_MACHINE
from kexue_train.foundation.credentials import redact
from kexue_train.foundation.errors import ResourceError
from kexue_train.foundation.runtime import enable_package_loggers

logger = logging.getLogger(__name__)

_SECONDS_TO_ANSWER = 6.0
_OUTSIDE = "ray://"
# A head starts a process for each client from outside, and gives it 30 s (RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S).
_NO_CLIENT_SERVER = "Initialization failure from server"
_TRIES = 3
# What the two ports of a head know that a driver may be given, and only they.
_OF_HEAD = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_OF_CLIENT_SERVER = "/ray.rpc.RayletDriver/ClusterInfo"
_CHECK = (
    "check that its head runs ('ray status' there), that no firewall is between, and that the address is the one 'ray "
    "start --head' printed, or from outside of the cluster ray://HOST:10001"
)
_TOKEN = "it asks for a token, and not this one; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN as they are there"
_REFUSALS = {
    "UNIMPLEMENTED": f"that is another of Ray's ports; {_CHECK}",
    "UNAUTHENTICATED": _TOKEN,
    "UNAVAILABLE": f"something answers there, but it is not Ray; {_CHECK}",
    "DEADLINE_EXCEEDED": f"something answers there, but it is not Ray; {_CHECK}",
}
_TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_MAY_GROW = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)")


def current_machine() -> str:
    """Return the name of the machine of this task, as ``Executor.machines`` has it; not for the driver of a cluster."""
    ray = sys.modules.get("ray")  # a worker of Ray has imported it, others need not pay for it
    if ray is None or not ray.is_initialized() or joined_from_outside():
        return LOCAL_MACHINE
    if ray.get_runtime_context().worker.mode != ray.WORKER_MODE:
        return LOCAL_MACHINE
    return str(ray.util.get_node_ip_address())


def joined_from_outside() -> bool:
    """Return whether this process has joined a cluster through ``ray://``, so that its driver is a process there."""
    from ray.util.client import ray as client  # noqa: PLC0415  # a door

    return bool(client.is_connected())


def cluster_address(address: str | None) -> str | None:
    """Return where the cluster is that a run with this setting joins; None if it starts one of its own."""
    return address or os.environ.get("RAY_ADDRESS") or None


def connect_ray(address: str | None, num_cpus: int | None) -> None:
    """Join the cluster at ``address`` (None: the one RAY_ADDRESS names) or start a local one; twice is as once.

    Raises:
        ResourceError: If Ray is not installed, or the cluster cannot be reached or is of another version.
    """
    enable_package_loggers()  # what follows may wait for machines, and has to say so
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
    if address := cluster_address(address):
        _read_token_setting()  # with that of an earlier local cluster, this process and the machines refuse each other
        _require_reachable(address)
    # ray.init replaces the handlers of the main thread, after which a cancelled flow counts as crashed.
    on_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)} if on_main else {}
    try:
        if address:
            _init(address, num_cpus)
        else:
            with _loopback_with_token():
                _init(address, num_cpus)
        atexit.register(ray.shutdown)  # before Ray's own, which waits half a second for output of the tasks
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _explained(error, address) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _init(address: str | None, num_cpus: int | None) -> None:
    """Call ``ray.init``, again when the head was too slow to start the server that a client from outside needs."""
    import ray  # noqa: PLC0415  # a door

    _mask_command_line()
    for tries_left in reversed(range(_TRIES)):
        try:
            ray.init(
                address=address or "local",  # None would also join a cluster that somebody started on this machine
                **({} if address else _local_cluster(num_cpus)),
                log_to_driver=False,
                logging_level="error",
                configure_logging=True,
            )
        except ConnectionAbortedError as error:
            if _NO_CLIENT_SERVER not in str(error) or not tries_left:
                raise
            logger.warning("the Ray cluster at %s is busy (%s); trying again", address, _reason(error))
        else:
            return


def _mask_command_line() -> None:
    """Take credentials out of the command line of this process, which Ray shows as what a job runs, and ``ps`` too."""
    import ray._raylet  # noqa: PLC0415  # nowhere public

    words = shlex.join(psutil.Process().cmdline())
    if (shown := redact(words)) != words:
        ray._raylet.setproctitle(shown)


def _reason(error: BaseException) -> str:
    """Return the line of Ray's message that says why: the first, or the last of the traceback that a head has sent."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip() if _NO_CLIENT_SERVER in lines[0] else lines[0]


def _explained(error: BaseException, address: str | None) -> ResourceError:
    """Return what kept Ray from joining or starting a cluster."""
    where = f"the Ray cluster at {address}" if address else "a local Ray cluster"
    causes = [error]
    while causes[-1].__cause__:
        causes.append(causes[-1].__cause__)
    versions = [found for cause in causes if len(found := _VERSIONS.findall(str(cause))) == 2]
    if versions:
        (ray_there, python_there), (ray_here, python_here) = versions[0]
        return ResourceError(
            f"{where} runs Ray {ray_there} on Python {python_there}, this process Ray {ray_here} on Python "
            f"{python_here}; both must be the same: install here what the cluster has (pip install ray=={ray_there} "
            f"on Python {python_there}), or there what constraints.txt names"
        )
    said = "; ".join(dict.fromkeys(_reason(cause) for cause in causes))
    return ResourceError(f"{where} cannot be reached or started ({said}); check 'ray status' and the address")


def _require_reachable(address: str) -> None:
    """Refuse soon, and with the reason, what ``ray.init`` would wait for; names such as ``auto`` are left to Ray."""
    target = address.removeprefix(_OUTSIDE)
    host, colon, port = target.rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS_TO_ANSWER).close()
        refusal = _refusal(target, _OF_CLIENT_SERVER if address.startswith(_OUTSIDE) else _OF_HEAD)
    except (OSError, OverflowError) as error:
        refusal = f"{error}; {_CHECK}"
    if refusal:
        raise ResourceError(f"the Ray cluster at {address} cannot be reached: {refusal}")
    if not address.startswith(_OUTSIDE):
        _require_node_here(address)


def _refusal(target: str, method: str) -> str | None:
    """Return why ``target`` is not the part of Ray that has ``method``, or unusable here; None if it is fine."""
    import grpc  # noqa: PLC0415  # comes with Ray
    from ray._private.grpc_utils import init_grpc_channel  # noqa: PLC0415  # with the token, and TLS if that is set
    from ray.exceptions import AuthenticationError  # noqa: PLC0415  # a door

    try:
        with init_grpc_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
            channel.unary_unary(method)(b"", timeout=_SECONDS_TO_ANSWER)
    except grpc.RpcError as error:
        return _REFUSALS.get(error.code().name)
    except AuthenticationError:
        return _TOKEN
    return None


def _require_node_here(address: str) -> None:
    """Refuse what ``ray.init`` would wait for: a driver needs a node of the cluster on its machine."""
    from ray._private.services import find_node_ids  # noqa: PLC0415  # how Ray finds them

    deadline = time.monotonic() + _SECONDS_TO_ANSWER  # it may just be starting
    while not find_node_ids():
        if time.monotonic() > deadline:
            host = address.rpartition(":")[0]
            raise ResourceError(
                f"the Ray cluster at {address} has no node on this machine; start one with 'ray start --address="
                f"{address}', join from outside with {_OUTSIDE}{host}:10001, or send the command there with 'ray job "
                "submit'"
            )
        time.sleep(0.2)


@contextmanager
def _loopback_with_token() -> Iterator[None]:
    """Let a cluster that is started meanwhile listen on 127.0.0.1 alone, and serve only who has its token.

    Whoever reaches a port of Ray runs code: other machines, and other users of this one. Ray listens on all interfaces
    unless the address of the node is 127.0.0.1, which it takes on Linux only if told that no other machine will join.
    """
    from ray._private import ray_constants  # noqa: PLC0415  # nowhere public

    given = {name: value for name in _TOKENS if (value := os.environ.get(name))}
    settings = {_MAY_GROW: "0", "RAY_AUTH_MODE": "token", **(given or {_TOKENS[0]: _own_token()})}
    before = {name: os.environ.get(name) for name in settings}
    may_grow, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    os.environ.update(settings)
    _read_token_setting()
    try:
        yield
    finally:  # the processes of the cluster have inherited them, and this one has read them
        ray_constants.ENABLE_RAY_CLUSTER = may_grow
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@cache
def _own_token() -> str:
    """Return the token of all local clusters of this process: threads of an earlier one may still ask with it."""
    return secrets.token_hex(32)


def _read_token_setting() -> None:
    """Let Ray look at the environment again: it has kept what it found there when it was imported."""
    import ray._raylet  # noqa: PLC0415  # nowhere public

    compiled: Any = ray._raylet  # without types
    compiled.Config.initialize("")
    compiled.AuthenticationTokenLoader.instance().reset_cache()


def _local_cluster(num_cpus: int | None) -> dict[str, Any]:
    return {
        "num_cpus": num_cpus,
        "include_dashboard": False,
        "object_store_memory": 200 * 2**20,  # tasks exchange file names, not data
        "_node_ip_address": "127.0.0.1",
    }
