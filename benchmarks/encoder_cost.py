"""What a call costs: memory by the allocator's own count, and time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from kexue_train.train.data import synchronize


@dataclass(frozen=True, slots=True)
class Allocated:
    """Bytes allocated by a call, above what was there before."""

    peak: int
    left: int
    """Still there when it returned, together with its result."""


def allocated(call: Callable[[], Any], device: torch.device) -> Allocated:
    """Count the allocator's bytes during ``call``; what the call frees of before counts negative."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        torch.cuda.synchronize(device)
        found = Allocated(
            torch.cuda.max_memory_allocated(device) - before, torch.cuda.memory_allocated(device) - before
        )
        del result
        return found
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = call()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    del result
    return Allocated(peak, now)


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Wall time of ``call`` until the device has done it."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start
