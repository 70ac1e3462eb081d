"""Two tokens, one of which occurs in the first step only, and the optimizers that may move their table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads
from torch import Tensor, nn

from kexue_train.optim import build_param_groups
from kexue_train.optim.accumulation import HiddenAccumulation
from kexue_train.optim.options import Options
from kexue_train.optim.rules import AdamWRule, Rule
from kexue_train.optim.tiger_update import TigerRule

Tying = Literal["untied", "tied", "half_swapped"]
FREQUENT, RARE = 0, 1
DECAY, START = 0.01, 0.02
_WIDTH, _EXAMPLES, _BETA, _LR, _STEPS = 8, 16, 0.965, 8e-3, 2000


@dataclass(frozen=True)
class Remedy:
    """What is changed against the drift of a rare row."""

    tying: Tying = "untied"
    options: Options = field(default_factory=Options)
    rule: Rule = field(default_factory=lambda: TigerRule(_BETA))
    lr: float = _LR


NONE = Remedy()
REMEDIES = {
    "lazy rows": Remedy(options=Options(lazy_rows=True)),
    "tied": Remedy("tied"),
    "half-swapped": Remedy("half_swapped"),
    "AdamW rows": Remedy(rule=AdamWRule(), lr=1e-3),
    "dead zone 1e-8": Remedy(rule=TigerRule(_BETA, dead_zone=1e-8)),
    "dead zone 1e-30": Remedy(rule=TigerRule(_BETA, dead_zone=1e-30)),
}


class TwoTokens(nn.Module):
    """A token is seen as its row times signs that stand for its context, and predicts itself."""

    def __init__(self, tying: Tying, generator: torch.Generator) -> None:
        super().__init__()
        table, head = START * torch.randn(2, 2, _WIDTH, dtype=torch.float64, generator=generator)
        self.embedding, self.tying = nn.Embedding(2, _WIDTH, _weight=table), tying
        self.register_buffer("head", head)

    def forward(self, tokens: Tensor, signs: Tensor) -> Tensor:
        """Return the mean loss of examples [n] in contexts [n, width]."""
        features = signs * self.embedding(tokens)
        if self.tying == "half_swapped":
            features = features.roll(_WIDTH // 2, -1)
        logits = features @ (self.head if self.tying == "untied" else self.embedding.weight).T
        return F.cross_entropy(logits, tokens)


def largest_of_rare_row(remedy: Remedy, seed: int, *, steps: int = _STEPS) -> float:
    """Return the largest element that the row of the rare token ever had."""
    generator = torch.Generator().manual_seed(seed)
    module = TwoTokens(remedy.tying, generator)
    defaults = {"lr": remedy.lr, "beta": remedy.rule.moments[0].beta, "weight_decay": DECAY}
    optimizer = HiddenAccumulation(
        build_param_groups(module), remedy.rule, defaults, accumulation_steps=1, options=remedy.options
    )
    row, largest = module.embedding.weight.detach()[RARE], 0.0
    for step in range(steps):
        tokens = torch.full((_EXAMPLES,), RARE if step == 0 else FREQUENT)
        signs = 2.0 * torch.randint(0, 2, (_EXAMPLES, _WIDTH), generator=generator).double() - 1
        optimizer.observe_tokens(tokens)
        module(tokens, signs).backward()
        optimizer.step()
        largest = max(largest, row.abs().max().item())
    return largest


def sum_of_rates_to_half(lr: float) -> float:
    """Return Σα when a row of 0.01 whose sign never changes reaches half of its limit 1/λ."""
    table = nn.Embedding(1, 4, _weight=torch.full((1, 4), 0.01, dtype=torch.float64))
    optimizer = HiddenAccumulation(
        build_param_groups(table),
        TigerRule(_BETA),
        {"lr": lr, "beta": _BETA, "weight_decay": DECAY},
        accumulation_steps=1,
    )
    table.weight.sum().neg().backward()  # type: ignore[no-untyped-call]  # as torch has it
    total = 0.0
    while table.weight[0, 0].item() < 0.5 / DECAY and total < 100:
        optimizer.step()
        total += lr
    return total
