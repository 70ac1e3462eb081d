"""What a training step costs: memory by the allocator's own count, and operations by one formula."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


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


def flops_per_token(
    *, layers: int, hidden: int, intermediate: int, vocab: int, lengths: Sequence[int], predicted_share: float
) -> float:
    """6 N_linear + 12 L h s_eff + 6 (h V + h²) p per real token, forward and backward; recomputation is not counted.

    ``s_eff`` is the length of the sequence that a token is in, on average: Σ length² / Σ length.
    """
    linear = layers * (4 * hidden**2 + 2 * hidden * intermediate)
    seen = sum(length**2 for length in lengths) / sum(lengths)
    return 6 * linear + 12 * layers * hidden * seen + 6 * (hidden * vocab + hidden**2) * predicted_share


def product_flops_per_second(dtype: torch.dtype, device: torch.device) -> float:
    """The device's own rate for a large matrix product, the best of five."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: a @ b.T, device) for _ in range(5))


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Wall time of ``call`` until the device has done it."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
