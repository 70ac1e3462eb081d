"""Record what a few chosen steps spend their time on, with torch.profiler, in a file that browsers show."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Self

import torch
from torch.profiler import ProfilerActivity, profile

from kexue_train.train.config import ProfileConfig

logger = logging.getLogger(__name__)


class StepProfiler:
    """Records the steps that ``config`` chooses, on this rank; none if it is None. Leave the block to stop early.

    The trace (``trace-rank-0-step-50.json.gz``, named after the first step recorded) opens in https://ui.perfetto.dev
    and in chrome://tracing. Recording changes no number, but makes the steps slower.
    """

    def __init__(self, config: ProfileConfig | None, folder: Path, rank: int) -> None:
        self._steps = range(config.first_step, config.first_step + config.steps) if config else range(0)
        self._folder, self._rank = folder, rank
        self._running: profile | None = None
        self._first = 0

    def before(self, step: int) -> None:
        """Start to record if the step is the first one chosen; call it before each step."""
        if step in self._steps and self._running is None:
            cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._running, self._first = profile(activities=[ProfilerActivity.CPU, *cuda]), step
            self._running.start()

    def after(self, step: int) -> Path | None:
        """Return the trace after the last step that is recorded; call it after each step."""
        return self._stop() if step + 1 not in self._steps else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> Path | None:
        if self._running is None:
            return None
        recorded, self._running = self._running, None
        recorded.stop()
        path = self._folder / f"trace-rank-{self._rank}-step-{self._first}.json.gz"
        try:
            recorded.export_chrome_trace(str(path))
        except OSError as error:
            logger.warning("%s: cannot be written (%s); training continues", path, error)
            return None
        logger.info("steps from %d on are profiled in %s", self._first, path)
        return path
