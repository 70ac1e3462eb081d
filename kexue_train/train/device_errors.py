"""What CUDA, NCCL and Triton say, in words only, when memory, a device or a network fails, and what to do about it."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LONGEST_LINE = 300


@dataclass(frozen=True, slots=True)
class DeviceFault:
    """One kind of failure."""

    meaning: str
    remedy: str
    comes_back: bool
    """Whether another start on the same machine would meet it again."""
    words: re.Pattern[str]
    """Found in the texts of this kind, and in no text of a kind after it in ``FAULTS``."""


def _words(*alternatives: str) -> re.Pattern[str]:
    return re.compile("|".join(alternatives), re.IGNORECASE)


PINNED_MEMORY = DeviceFault(
    "InfiniBand or EFA may not pin the memory that it moves",
    "Raise the limit of locked memory (ulimit -l unlimited; --ulimit memlock=-1 for a container; LimitMEMLOCK=infinity "
    "for slurmd or the container runtime)",
    True,
    _words(r"ibv_(reg_\w+|create_\w+)\b.*(cannot allocate memory|ENOMEM)", r"fi_mr_reg\w*\b.*cannot allocate memory"),
)
SHARED_MEMORY = DeviceFault(
    "/dev/shm is full or too small",
    "Make it larger (shm_size or --shm-size of a container, an emptyDir of medium Memory in Kubernetes), or remove "
    "what earlier runs have left in it",
    True,
    _words(r"shared memory segment /dev/shm", r"failed to extend /dev/shm", r"out of shared memory"),
)
OUT_OF_MEMORY = DeviceFault(
    "memory ran out",
    "Take smaller micro-batches or train.compute.recompute=full",
    True,
    _words(
        r"out[ _]of[ _]memory",
        r"(can't|cannot|unable to|failed to) allocate",
        "not enough memory",
        "STATUS_ALLOC_FAILED",
        "(HOST|DEVICE)_ALLOCATION_FAILED",
        "cudaErrorMemoryAllocation",
    ),
)
BROKEN_DEVICE = DeviceFault(
    "the device has failed",
    "Look for Xid in the kernel's log (dmesg) and at nvidia-smi -q; if it comes again, take the machine out of use",
    False,
    _words(
        "uncorrectable (ECC|NVLink) error",
        "unspecified launch failure",
        "hardware stack error",
        "GPU is lost",
        "fallen off the bus",
        "system not yet initialized",
        "all CUDA-capable devices are busy or unavailable",
        "CUDA error: unknown error",
        "Cuda failure 999",
    ),
)
BAD_ACCESS = DeviceFault(
    "a kernel has gone wrong, or the device computes wrongly",
    "If it comes again, run once with CUDA_LAUNCH_BLOCKING=1, which names the kernel, and try another device",
    False,
    _words(
        "illegal (memory access|instruction)",
        "misaligned address",
        "device-side assert triggered",
        "invalid program counter",
        "Warp (Illegal|Out-of-range)",
    ),
)
HUNG_COLLECTIVE = DeviceFault(
    "a collective has waited longer than any step may take",
    "Look in the other ranks' logs and stacks for the one that stopped, and at the network between the machines",
    False,
    _words("Watchdog caught collective operation timeout", r"Timed out waiting \d+ms for (send|recv) operation"),
)
LOST_RANK = DeviceFault(
    "another rank has gone",
    "Its own log says why",
    False,
    _words("ncclRemoteError", "Connection (closed|reset) by", "NCCL communicator was aborted", "Broken pipe"),
)
FAULTS = (PINNED_MEMORY, SHARED_MEMORY, OUT_OF_MEMORY, BROKEN_DEVICE, BAD_ACCESS, HUNG_COLLECTIVE, LOST_RANK)
"""Causes come before what follows from them in other ranks."""


def find_fault(text: str) -> DeviceFault | None:
    """Return the fault that a message tells of, in the first of its kind in ``FAULTS``; None if it tells of none."""
    return next((fault for fault in FAULTS if fault.words.search(text)), None)


def find_cause(log: str) -> str | None:
    """Return the line of a log that tells of the fault nearest to the cause; None if there is none but lost ranks."""
    fault = find_fault(log)
    return None if fault is None or fault is LOST_RANK else line_of(fault, log)


def line_of(fault: DeviceFault, text: str) -> str:
    """Return the line of ``text`` that tells of ``fault``, cut to a readable length."""
    line = next(line for line in text.splitlines() if fault.words.search(line))
    return line.strip()[:_LONGEST_LINE]
