"""What the ranks count between two lines of metrics, and the rates that follow from it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import psutil
import torch
from torch import Tensor

from kexue_train.foundation.runtime import available_memory_bytes, total_memory_bytes
from kexue_train.metrics.heads import MLM
from kexue_train.train.data import Tensors, synchronize
from kexue_train.train.distributed import max_over_ranks, sum_over_ranks
from kexue_train.train.monitor.flops import FlopRule, PeakRates
from kexue_train.train.objective import NUM_SUMS, Heads, mean_scores

_RATE_LINES = 50


class Totals(NamedTuple):
    """Over all ranks and the micro-batches since the last line."""

    scores: dict[str, float]
    """Means and counts of the heads."""
    tokens: int
    """Real ones, without padding."""
    seen_tokens: int
    """Tokens that these attend to: Σ length² over the sequences."""
    seconds: float
    """Training, without validation and saving; on this rank."""
    data_wait: float
    """Share of the time that the rank which waited longest has waited for its loader."""
    memory_bytes: int
    """Memory of the rank that takes most: the peak of what is allocated on a CUDA device; else what is resident now."""
    memory_share: float
    """Used share of the fullest device or machine, whoever uses it."""


class Meter:
    """Sums over the micro-batches since the last line of metrics, on this rank; nothing in here waits for a device.

    Attributes:
        step_sums: ``LabelScores`` of the heads over the micro-batches since ``start_step``: [heads, 3].
    """

    def __init__(self, heads: Heads, device: torch.device) -> None:
        self._heads, self._device = heads, device
        self._sums = torch.zeros(len(heads), NUM_SUMS, device=device)
        self._tokens = self._seen_tokens = 0
        self._waited = 0.0
        self._started = time.perf_counter()
        self.step_sums = torch.zeros_like(self._sums)

    def start_step(self) -> None:
        """Begin with new ``step_sums``."""
        self.step_sums = torch.zeros_like(self._sums)

    def add(self, sums: Tensor, batch: Tensors) -> None:
        """Count one micro-batch, given as it lies on the host, with the ``LabelScores`` of the heads: [heads, 3]."""
        self._sums += sums
        self.step_sums += sums
        tokens = int((batch["sequence_ids"] > 0).sum())
        self._tokens += tokens
        self._seen_tokens += tokens + 2 * int(batch["position_ids"].sum())  # 1 + 3 + 5 + ... = length²

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time in here is waiting for the loader."""
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time in here, validating and saving, is not training; what the device has yet to do is."""
        synchronize(self._device)
        before = time.perf_counter()
        yield
        self._started += time.perf_counter() - before

    def total(self) -> Totals:
        """Add up over the ranks, and wait for it. A collective call."""
        counts = torch.tensor([self._tokens, self._seen_tokens], dtype=torch.float64, device=self._device)
        summed = sum_over_ranks(torch.cat([self._sums.to(counts.dtype).flatten(), counts]))
        scores = mean_scores(summed[:-2].view(-1, NUM_SUMS).tolist(), self._heads)
        tokens, seen = summed[-2:].tolist()
        seconds = time.perf_counter() - self._started
        most = torch.tensor([self._waited / seconds, *_memory(self._device)], dtype=torch.float64, device=self._device)
        data_wait, memory_bytes, memory_share = max_over_ranks(most).tolist()
        return Totals(scores, int(tokens), int(seen), seconds, data_wait, int(memory_bytes), memory_share)


class Speedometer:
    """Turns the totals of each line of metrics into rates.

    Args:
        rule: Operations of the model.
        peak: What all devices together could do.
        step: Steps done.
        clock: Seconds.

    Attributes:
        peak: As given.
    """

    def __init__(self, rule: FlopRule, peak: PeakRates, step: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.peak, self._rule, self._clock = peak, rule, clock
        self._times = deque([(step, clock())], maxlen=_RATE_LINES)

    def read(self, step: int, last_step: int, totals: Totals) -> dict[str, float]:
        """Compute the rates after ``step`` steps, of ``last_step`` in all.

        Returns:
            ``tokens_per_second`` (real tokens), ``flops_per_second``, ``mfu`` (share of what the devices were measured
            to do), ``mfu_datasheet`` (of what their makers promise; left out if unknown), and ``eta_seconds`` at the
            pace of the last 50 lines, validating and saving included.
        """
        predictions = totals.scores.get(MLM.counted, 0)
        flops = self._rule.flops(totals.tokens, totals.seen_tokens, predictions) / totals.seconds
        self._times.append((step, self._clock()))
        (first_step, first), (_, now) = self._times[0], self._times[-1]
        rates = {
            "tokens_per_second": totals.tokens / totals.seconds,
            "flops_per_second": flops,
            "mfu": flops / self.peak.measured,
            "eta_seconds": (last_step - step) * (now - first) / (step - first_step),
        }
        return rates | ({"mfu_datasheet": flops / self.peak.datasheet} if self.peak.datasheet else {})


def _memory(device: torch.device) -> tuple[int, float]:
    """(bytes that this process takes, used share of the device or machine)."""
    if device.type == "cuda":
        taken = torch.cuda.max_memory_allocated(device)
        return taken, taken / torch.cuda.get_device_properties(device).total_memory
    free = available_memory_bytes() / total_memory_bytes()
    return int(psutil.Process().memory_info().rss), max(0.0, 1 - free)
