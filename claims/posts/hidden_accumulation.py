"""Gradients of micro-batches folded into the momentum give exactly the steps of the averaged gradient."""

from __future__ import annotations

from typing import Literal

import torch

from claims.claim import Bars, Claim, Figures, Found, Setting
from claims.training.encoders import masked_lm
from claims.verdict import Verdict, all_of, below
from kexue_train.optim import Tiger, build_param_groups
from kexue_train.optim.options import Options

_STEPS, _PARTS, _ROWS, _LENGTH, _VOCAB = 5, 4, 8, 16, 64
_Way = Literal["folded", "added up", "whole batch"]


def measure(seed: int, _: Setting) -> Figures:
    """Largest differences after some steps, in fp64 so that rounding cannot hide one."""
    folded, momentum = train("folded", seed)
    figures = {}
    for way in ("added up", "whole batch"):
        other, other_momentum = train(way, seed)
        figures[f"weights, {way}"] = max(_difference(a, b) for a, b in zip(folded, other, strict=True))
        figures[f"momentum, {way}"] = max(_difference(a, b) for a, b in zip(momentum, other_momentum, strict=True))
    return figures


def train(way: _Way, seed: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return weights and momenta after the same steps: four micro-batches folded, added up, or as one batch."""
    torch.manual_seed(seed)
    model = masked_lm(layers=2, hidden=32, vocab=_VOCAB).double()
    parts = 1 if way == "whole batch" else _PARTS
    options = Options(accumulate="gradient" if way == "added up" else "momentum")
    optimizer = Tiger(build_param_groups(model), lr=2e-3, accumulation_steps=parts, options=options)
    for _ in range(_STEPS):
        tokens = torch.randint(0, _VOCAB, (_ROWS, _LENGTH))
        for rows in tokens.chunk(parts):
            model(rows, labels=rows.roll(1, 1)).loss.backward()
            optimizer.step()
    weights = [parameter.detach() for parameter in model.parameters()]
    return weights, [optimizer.momentum(parameter).clone() for parameter in model.parameters()]


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).abs().max() / other.abs().max()).item()


def judge(found: Found) -> Verdict:
    """Nothing but rounding differs."""
    return all_of(*(below(values, confirms=1e-12, refutes=1e-9) for values in found.values()))


CLAIM = Claim(
    name="hidden-accumulation",
    sentence="Gradients can be accumulated inside the momentum, without a buffer, and the steps are exactly those "
    "of the averaged gradient.",
    source=8634,
    measured="Tiger, 5 steps of a 2 × 32 encoder in fp64: 4 micro-batches folded into the momentum, the same 4 "
    "added up in a gradient buffer, and the 4 as one batch. Largest difference over the largest element of each "
    "tensor.",
    refuted_if="a weight or a momentum differs by more than 1e-9 of the largest one (rounding gives 1e-16).",
    unit="relative",
    shown=("weights, added up", "weights, whole batch", "momentum, whole batch"),
    picture=Bars(
        ("weights, added up", "momentum, added up", "weights, whole batch", "momentum, whole batch"),
        "largest relative difference to folded gradients",
    ),
    seconds=2,
    measure=measure,
    judge=judge,
    remark="Rounding would flip the sign of a momentum that is nearly zero; in fp64 none was.",
)
