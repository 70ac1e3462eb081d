"""A check of the acceptance: what it is called, what it needs, and what it finds."""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

Figures = dict[str, Any]
"""What a check has measured, as JSON holds it."""


class CheckFailed(Exception):  # noqa: N818  # as in a report
    """Something is not as it must be; ``figures`` say what was found."""

    def __init__(self, message: str, figures: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.figures = dict(figures or {})


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large everything is."""

    seq_len: int
    vocab_size: int
    num_documents: int
    model: Mapping[str, int]
    """Of the trainings and comparisons; what it leaves out is as in base."""
    rows: int
    """Of a micro-batch."""
    grid: Mapping[str, Mapping[str, int]]
    """Models whose speed is measured."""
    grid_rows: tuple[int, ...]
    backend: str
    """Of torch.compile."""
    least_share_of_peak: float
    """What the fastest cell of the grid must reach of a large matrix product's rate; less means that a kernel is not
    the one that it should be."""


_LARGE = {"num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
REAL = Sizes(
    seq_len=512, vocab_size=12_000, num_documents=6000, model={"num_hidden_layers": 3}, rows=8,
    grid={"base": {}, "large": _LARGE}, grid_rows=(64, 128, 32), backend="inductor", least_share_of_peak=0.2,
)  # fmt: skip
_TINY = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
STAND_IN = Sizes(
    seq_len=32, vocab_size=160, num_documents=60, model=_TINY, rows=4,
    grid={"base": _TINY}, grid_rows=(2,), backend="eager", least_share_of_peak=1e-9,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where a check works."""

    device: torch.device
    sizes: Sizes
    out: Path
    """Receives what is kept: gpu.json and the trace."""
    samples: Path
    """Folder of sample shards, made up."""
    deadline: float = float("inf")
    """``time.monotonic()`` at which the time box of the check ends."""

    @property
    def is_stand_in(self) -> bool:
        """Whether a CPU stands in for the GPU."""
        return self.device.type != "cuda"

    @property
    def autocast(self) -> torch.dtype | None:
        """Of training: bf16, but on a CPU, where products in it may take ten times as long."""
        return None if self.is_stand_in else torch.bfloat16

    @property
    def seconds_left(self) -> float:
        """Of the time box."""
        return self.deadline - time.monotonic()

    def fresh_folder(self, name: str) -> Path:
        """An empty place for what a check writes and nobody keeps; the folder itself does not exist yet."""
        folder = self.out / "work" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        return folder


@dataclass(frozen=True, kw_only=True)
class Check:
    """One entry of the acceptance."""

    name: str
    minutes: float
    """Its time box, where all of them have eight."""
    run: Callable[[Bench], Figures]
    """Returns what it measured, or raises; whatever it raises is a failure."""
    packages: tuple[str, ...] = ()
    """That must be installed; without one of them the check is left out."""
    needs_gpu: bool = False
    """Whether nothing on a CPU can stand in for it."""

    def why_left_out(self, bench: Bench) -> str | None:
        """Return the reason, if it cannot run here."""
        missing = [package for package in self.packages if importlib.util.find_spec(package) is None]
        if missing:
            return f"not installed: {', '.join(missing)}"
        return "needs a GPU" if self.needs_gpu and bench.is_stand_in else None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a check."""

    name: str
    status: Literal["passed", "failed", "left out"]
    seconds: float = 0.0
    message: str = ""
    """Why it failed or was left out."""
    figures: Figures


def run_check(check: Check, bench: Bench) -> Outcome:
    """Run one check; nothing that it raises comes out."""
    if reason := check.why_left_out(bench):
        return Outcome(name=check.name, status="left out", message=reason, figures={})
    started = time.monotonic()
    status: Literal["passed", "failed"] = "passed"
    figures, message = {}, ""
    try:
        figures = check.run(bench)
    except Exception as error:  # noqa: BLE001  # a failure of a check is what it is made to find
        status, message = "failed", f"{type(error).__name__}: {error}"
        figures = error.figures if isinstance(error, CheckFailed) else {}
    seconds = round(time.monotonic() - started, 2)
    return Outcome(name=check.name, status=status, seconds=seconds, message=message, figures=figures)


def require(condition: bool, message: str, figures: Mapping[str, Any] | None = None) -> None:
    """Fail the check unless ``condition``.

    Raises:
        CheckFailed: With ``message`` and what was measured so far.
    """
    if not condition:
        raise CheckFailed(message, figures)
