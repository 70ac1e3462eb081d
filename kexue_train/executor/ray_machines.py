"""The machines of the Ray cluster that was joined or started, and what to do while some are missing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from kexue_train.foundation.errors import ResourceError
from kexue_train.foundation.runtime import format_seconds

logger = logging.getLogger(__name__)

CUSTOM_RESOURCE_AMOUNT = 0.0001
"""What a task takes of the custom resource that labels machines: the least that Ray can count."""
_POLL_SECONDS = 1.0
_NAMED = 4


@dataclass(frozen=True)
class Node:
    """One alive machine of the cluster; its name is its IP address, which outlives drivers and restarts of Ray."""

    machine: str
    node_id: str
    cpus: float
    memory_bytes: float
    gpus: float = 0.0
    has_custom_resource: bool = False
    """Whether it has the custom resource that was asked for."""


def machines_with(resource: Literal["CPU", "GPU"], custom_resource: str | None) -> list[Node]:
    """Return the nodes that have some of ``resource``; where any has ``custom_resource``, only those that have both."""
    nodes = [node for node in _alive(custom_resource) if (node.gpus if resource == "GPU" else node.cpus) > 0]
    return [node for node in nodes if node.has_custom_resource] or nodes


def wait_for_machines(
    lack: Callable[[], str | None],
    bundles: Sequence[Mapping[str, float]],
    *,
    seconds: float,
    is_stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Wait until nothing is missing, and say what is; an autoscaler is asked for it.

    Args:
        lack: What the cluster lacks now, as a sentence; None if nothing.
        bundles: What is needed at once, each on one machine, in Ray's resources.
        seconds: How long to wait; 0: not at all.
        is_stopped: Whether to wait no longer, since nobody wants it any more.

    Raises:
        ResourceError: If something is still missing then, with the machines that are there.
    """
    deadline, said = time.monotonic() + seconds, None
    try:
        while not is_stopped() and (missing := lack()):
            if time.monotonic() >= deadline:
                raise ResourceError(
                    f"{missing}; the cluster has {_listed(_alive(None))}. Add machines, ask for less, or wait longer "
                    f"(execution.cluster_timeout={seconds:g} s)"
                )
            if said is None:
                _ask_autoscaler([dict(bundle) for bundle in bundles])
            if missing != said:
                logger.warning("%s; waiting up to %s for machines to join", missing, format_seconds(seconds))
                said = missing
            time.sleep(_POLL_SECONDS)
    finally:
        if said is not None:
            _ask_autoscaler([])


def _ask_autoscaler(bundles: list[dict[str, float]]) -> None:
    """Tell Ray's autoscaler what will be wanted; without an autoscaler, nothing happens."""
    from ray.autoscaler import sdk  # noqa: PLC0415  # a door

    sdk.request_resources(bundles=bundles)


def _alive(custom_resource: str | None) -> list[Node]:
    import ray  # noqa: PLC0415  # a door

    return [
        Node(
            machine=node["NodeManagerAddress"],
            node_id=node["NodeID"],
            cpus=node["Resources"].get("CPU", 0.0),
            memory_bytes=node["Resources"].get("memory", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            has_custom_resource=bool(custom_resource) and node["Resources"].get(custom_resource, 0.0) > 0,
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def _listed(nodes: Sequence[Node]) -> str:
    """Return a text like ``2 machines: 10.0.0.1 (16 CPU, 0 GPU), 10.0.0.2 (32 CPU, 8 GPU)``."""
    named = ", ".join(f"{node.machine} ({node.cpus:g} CPU, {node.gpus:g} GPU)" for node in nodes[:_NAMED])
    more = f" and {len(nodes) - _NAMED} more" if nodes[_NAMED:] else ""
    return f"{len(nodes)} machine{'s' if len(nodes) != 1 else ''}: {named}{more}"
