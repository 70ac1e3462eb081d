"""Accumulation hidden in Adam's moments averages squares where the whole batch squares the average."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from claims.claim import Bars, Claim, Figures, Found, Setting
from claims.verdict import Verdict, all_of, within
from kexue_train.optim import build_param_groups
from kexue_train.optim.accumulation import HiddenAccumulation
from kexue_train.optim.options import Options
from kexue_train.optim.rules import AdamWRule

_PARTS, _STEPS, _SIZE = (2, 4, 8), 50, 20_000


def measure(seed: int, _: Setting) -> Figures:
    """How many times larger v is, for gradients that are pure noise and for gradients that agree."""
    figures = {}
    for parts in _PARTS:
        for kind in ("noise", "equal"):
            folded, whole = (second_moment(parts, kind, seed, folds=folds) for folds in (True, False))
            figures[f"{kind}, k = {parts}"] = (folded.mean() / whole.mean()).item()
    return figures


def second_moment(parts: int, kind: str, seed: int, *, folds: bool) -> Tensor:
    """Return v after some steps of ``parts`` micro-batches, folded into the moments or added up before."""
    generator = torch.Generator().manual_seed(seed)
    module = nn.Linear(_SIZE, 1, bias=False)
    options = Options(accumulate="momentum" if folds else "gradient")
    defaults = {"lr": 1e-3, "beta": 0.9, "weight_decay": 0.0}
    optimizer = HiddenAccumulation(
        build_param_groups(module), AdamWRule(), defaults, accumulation_steps=parts, options=options
    )
    gradient = torch.zeros(1, _SIZE)
    for micro_step in range(parts * _STEPS):
        if kind == "noise" or micro_step % parts == 0:
            gradient = torch.randn(1, _SIZE, generator=generator)
        loss = (module.weight * gradient).sum()  # its gradient is exactly that
        loss.backward()  # type: ignore[no-untyped-call]  # as torch has it
        optimizer.step()
    return optimizer.named_moments()["square.weight"].clone()


def judge(found: Found) -> Verdict:
    """K times for noise, the same for gradients that agree; within 2 %."""
    return all_of(
        *(within(found[f"noise, k = {parts}"], 0.98 * parts, 1.02 * parts) for parts in _PARTS),
        *(within(found[f"equal, k = {parts}"], 0.98, 1.02) for parts in _PARTS),
    )


CLAIM = Claim(
    name="adam-second-moment",
    sentence="For Adam hidden accumulation is an approximation: v becomes up to k times as large, k times where the "
    "gradients of a step are noise, and the same where they agree.",
    source=8634,
    measured="v of AdamW after 50 steps of k micro-batches, folded into the moments over added up before, mean of "
    "20,000 elements; gradients drawn anew for every micro-batch, or one for each step.",
    refuted_if="the ratio leaves k ± 2 % for noise, or 1 ± 2 % for gradients that agree.",
    unit="times",
    shown=("noise, k = 2", "noise, k = 4", "noise, k = 8", "equal, k = 8"),
    picture=Bars(
        tuple(f"{kind}, k = {parts}" for kind in ("noise", "equal") for parts in _PARTS),
        "v hidden / v of the whole batch",
    ),
    seconds=6,
    measure=measure,
    judge=judge,
    remark="Steps are then √k times shorter where gradients are noise, as in small micro-batches.",
)
