"""What the workers send each other in a step, and how long it takes on a network, on paper.

Bytes and number of calls are those of real runs (tests count them). Times follow from them by the model of a ring: all
GPUs of a machine share its network cards, and the slowest link of the ring sets the pace.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

GPUS_PER_MACHINE = 8
_FP32 = 4
BUCKET_BYTES, ZERO_BUCKET_BYTES = 25 * 2**20, 50_000_000 * _FP32
"""``optim/ranks.py``, ``train/engine.py``; tests compare them, as a plan loads no torch."""
_FORWARD, _BACKWARD = 1 / 3, 2 / 3
"""Shares of a micro-step without recomputation."""

# Estimates, none measured here: what NCCL's own benchmarks reach on A100s, and usual latencies.
_NVLINK_BYTES, _NVLINK_SECONDS = 230e9, 3e-6
_CALL_SECONDS = 20e-6
"""To start a collective."""


@dataclass(frozen=True, slots=True)
class Network:
    """What connects machines."""

    name: str
    bytes_per_second: float
    """That all cards of a machine reach together."""
    seconds: float
    """Of a message."""


NETWORKS = (
    Network("InfiniBand, 8 x 200 Gb/s", 160e9, 5e-6),
    Network("InfiniBand or EFA, 400 Gb/s", 40e9, 15e-6),
    Network("Ethernet, 100 Gb/s", 10e9, 30e-6),
)


class Collective(Enum):
    """What is done to a tensor, and how often its bytes pass the network."""

    ALL_REDUCE = 2
    ALL_GATHER = 1


@dataclass(frozen=True, slots=True)
class Transfer:
    """One tensor that all ranks reduce or gather."""

    collective: Collective
    tensor_bytes: int
    """Of the whole tensor."""
    times: int
    """In a step."""
    calls: int
    """That it takes each time."""
    beside: float
    """The share of a micro-step's computation that runs meanwhile, each time."""

    def sent_bytes(self, gpus: int) -> float:
        """What each rank sends in a step; it receives as much."""
        return self.times * self.collective.value * self.tensor_bytes * (gpus - 1) / gpus

    def seconds(self, gpus: int, network: Network) -> float:
        """How long it takes each time."""
        machines, inside = math.ceil(gpus / GPUS_PER_MACHINE), min(gpus, GPUS_PER_MACHINE)
        pace = _NVLINK_BYTES if machines == 1 else min(_NVLINK_BYTES, network.bytes_per_second)
        rounds = self.collective.value
        way = (inside - 1) * _NVLINK_SECONDS + math.ceil(math.log2(machines)) * network.seconds
        return self.sent_bytes(gpus) / self.times / pace + self.calls * (_CALL_SECONDS + rounds * way)

    def waited(self, gpus: int, network: Network, micro_step: float) -> float:
        """Seconds of a step without computation, where a micro-step takes ``micro_step``; the last call never hides."""
        whole = self.seconds(gpus, network)
        return self.times * max(whole - self.beside * micro_step, whole / self.calls)


@dataclass(frozen=True, slots=True)
class Communication:
    """That of one step on so many GPUs."""

    gpus: int
    network: str
    sent_bytes: float
    """By each GPU."""
    seconds: float
    """In which something is on the way."""
    waited_seconds: float
    """In which nothing is computed meanwhile."""
    step_seconds: float
    """Of computation alone."""


def transfers_of_step(
    *, parameters: int, tensors: int, zero_stage: int, hidden: bool, micro_steps: int
) -> tuple[Transfer, ...]:
    """What a step transfers, beside some numbers.

    Args:
        parameters: Weights that are trained.
        tensors: How many tensors they are.
        zero_stage: 0 to 3.
        hidden: Whether gradients accumulate in the momentum. Then stages 1 and 2 reduce in every micro-step.
        micro_steps: In a step.
    """
    size = parameters * _FP32
    zero_calls = math.ceil(size / ZERO_BUCKET_BYTES)
    match zero_stage, hidden:
        case 0, True:  # buckets of the momentum leave during the last backward
            reduced = Transfer(Collective.ALL_REDUCE, size, 1, math.ceil(size / BUCKET_BYTES), _BACKWARD)
        case 0, False:
            reduced = Transfer(Collective.ALL_REDUCE, size, 1, tensors, 0)
        case 1, False:
            reduced = Transfer(Collective.ALL_REDUCE, size, 1, zero_calls, 0)
        case 3, _:  # DeepSpeed overlaps stage 3 only
            reduced = Transfer(Collective.ALL_REDUCE, size, micro_steps, zero_calls, _BACKWARD)
        case _:
            reduced = Transfer(Collective.ALL_REDUCE, size, micro_steps, zero_calls, 0)
    if zero_stage == 0:
        return (reduced,)
    if zero_stage == 3:  # once per micro-step: models below a billion weights are kept from forward to backward
        return reduced, Transfer(Collective.ALL_GATHER, size, micro_steps, tensors, _FORWARD)
    return reduced, Transfer(Collective.ALL_GATHER, size, 1, 1, 0)


def communication_of_step(
    transfers: tuple[Transfer, ...], gpus: int, network: Network, *, micro_steps: int, step_seconds: float
) -> Communication:
    """Return the sums over ``transfers``, for a step that computes for ``step_seconds``."""
    return Communication(
        gpus=gpus,
        network="NVLink" if gpus <= GPUS_PER_MACHINE else network.name,
        sent_bytes=sum(transfer.sent_bytes(gpus) for transfer in transfers),
        seconds=sum(transfer.times * transfer.seconds(gpus, network) for transfer in transfers),
        waited_seconds=sum(transfer.waited(gpus, network, step_seconds / micro_steps) for transfer in transfers),
        step_seconds=step_seconds,
    )
