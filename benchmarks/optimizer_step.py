"""The time of an optimizer's own work, from gradients that are there to parameters moved, per byte it must touch."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from benchmarks.encoder_cost import seconds
from benchmarks.encoder_models import OURS, Size
from kexue_train.optim import Tiger, build_param_groups
from kexue_train.optim.library import build_library_optimizer
from kexue_train.optim.options import Options


@dataclass(frozen=True, slots=True)
class Contender:
    """An optimizer whose windows are timed, and the least bytes of memory it can do with per parameter."""

    title: str
    dtype: torch.dtype
    """Of weights and states."""
    build: Callable[[nn.Module], Any]
    micro_batch: int
    """For a gradient: (momentum or sum read and written, gradient read) x size of an element."""
    end: int
    """For the end of a window."""
    steals_first: bool
    """Whether the first gradient of a window becomes the sum without being touched."""

    def bytes_touched(self, parameters: int, k: int) -> int:
        """Of one window of ``k`` micro-batches."""
        return parameters * (self.micro_batch * (k - self.steals_first) + self.end)


def _adamw(model: nn.Module) -> Any:
    return build_library_optimizer("adamw", build_param_groups(model), lr=1e-3, weight_decay=0.01)


def _tiger(*, bf16: bool) -> Callable[[nn.Module], Tiger]:
    return lambda model: Tiger(build_param_groups(model), options=Options(bf16_states=bf16))


# AdamW reads θ, g, m, v and writes θ, m, v; Tiger's end of a window reads θ for its size, then m and θ and writes θ.
CONTENDERS = (
    Contender("AdamW (torch, fused)", torch.float32, _adamw, 12, 28, steals_first=True),
    Contender("Tiger, fp32", torch.float32, _tiger(bf16=False), 12, 16, steals_first=False),
    Contender("Tiger, bf16 states", torch.bfloat16, _tiger(bf16=True), 6, 8, steals_first=False),
)


@dataclass(frozen=True, slots=True)
class Result:
    """Windows of one contender."""

    title: str
    micro_batches: int
    bytes_touched: int
    seconds: list[float]

    @property
    def rate(self) -> float:
        """Bytes touched per second, by the median."""
        return self.bytes_touched / statistics.median(self.seconds)


@dataclass(frozen=True, slots=True)
class Found:
    """All figures of one device."""

    parameters: int
    copy_bytes_per_second: float
    results: list[Result]


def measure(size: Size, vocab: int, windows: Sequence[int], rounds: int, device: torch.device) -> Found:
    """Windows of all contenders in turn, another one first in each round; a round before the first warms up."""
    makers = {c: Window(c, OURS.build(size, vocab, 512, 0.0).to(device, c.dtype)) for c in CONTENDERS}
    parameters = next(iter(makers.values())).parameters
    times: dict[tuple[int, Contender], list[float]] = {(k, c): [] for k in windows for c in makers}
    for k in windows:
        for number in range(rounds + 1):
            turn = number % len(CONTENDERS)
            for contender in CONTENDERS[turn:] + CONTENDERS[:turn]:
                taken = makers[contender].seconds(k)
                if number:
                    times[k, contender].append(taken)
    results = [Result(c.title, k, c.bytes_touched(parameters, k), taken) for (k, c), taken in times.items()]
    return Found(parameters, copy_bytes_per_second(parameters, device), results)


def step_table(found: Found) -> Table:
    """Rates beside those of AdamW at the same window, and of a copy."""
    table = Table("optimizer", "micro-batches", "ms a window", "bytes / parameter", "GB/s", "× AdamW", "× copy")
    base = {r.micro_batches: r for r in found.results if r.title == CONTENDERS[0].title}
    for r in found.results:
        of_base = base[r.micro_batches]
        scale = r.bytes_touched / of_base.bytes_touched
        ratios = [scale * theirs / ours for theirs, ours in zip(of_base.seconds, r.seconds, strict=True)]
        table.add_row(
            r.title, str(r.micro_batches), f"{statistics.median(r.seconds) * 1e3:.1f}",
            f"{r.bytes_touched / found.parameters:.0f}", f"{r.rate / 1e9:.1f}",
            f"{statistics.median(ratios):.2f}", f"{r.rate / found.copy_bytes_per_second:.2f}",
        )  # fmt: skip
    return table


class _Give(torch.autograd.Function):
    """A loss whose gradients are there already, so that backward does nothing but hand them over."""

    @staticmethod
    def forward(ctx: Any, gradients: Sequence[Tensor], *params: Tensor) -> Tensor:
        ctx.gradients = gradients
        return torch.zeros((), device=params[0].device)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Any:
        # New tensors of the old memory: autograd takes what nobody else holds, and copies what somebody does.
        return None, *(gradient.detach() for gradient in ctx.gradients)


class Window:
    """Windows of one contender on random gradients, the same for all micro-batches."""

    def __init__(self, contender: Contender, model: nn.Module) -> None:
        self._params = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = contender.build(model)
        generator = torch.Generator(self._params[0].device).manual_seed(0)
        self._gradients = [torch.empty_like(p).normal_(generator=generator) for p in self._params]

    @property
    def parameters(self) -> int:
        """Numbers that are trained."""
        return sum(p.numel() for p in self._params)

    def seconds(self, k: int) -> float:
        """Of ``k`` micro-batches and one step."""
        first = [gradient.clone() for gradient in self._gradients]  # it may become the sum, or be written to
        return seconds(lambda: self._run([first, *[self._gradients] * (k - 1)]), first[0].device)

    def _run(self, micro_batches: Sequence[Sequence[Tensor]]) -> None:
        hidden = isinstance(self._optimizer, Tiger)
        if hidden:
            self._optimizer.accumulation_steps = len(micro_batches)
        for number, gradients in enumerate(micro_batches, 1):
            _Give.apply(gradients, *self._params).backward()
            if hidden or number == len(micro_batches):
                self._optimizer.step()
        if not hidden:
            self._optimizer.zero_grad(set_to_none=True)


def copy_bytes_per_second(parameters: int, device: torch.device) -> float:
    """Bytes read and written by copies of so many fp32 numbers, per second, the best of five."""
    source, target = (torch.ones(parameters, device=device) for _ in range(2))
    return 8 * parameters / min(seconds(lambda: target.copy_(source), device) for _ in range(5))
