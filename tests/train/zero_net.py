"""A small network with all that makes partitions hard, its data, Tiger for it by definition, and cases to train."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from kexue_train.optim.build import build_optimizer
from kexue_train.optim.config import OptimizerConfig
from kexue_train.optim.param_groups import build_param_groups
from kexue_train.optim.tiger_update import fold_gradient_, tiger_update_
from kexue_train.train import engine as engine_module
from kexue_train.train.config import TrainConfig
from kexue_train.train.engine import build_engine
from kexue_train.train.phases import plan_phases

ROWS, WORDS, STEPS = 24, 13, 20
LR, BETA, DECAY = 2e-3, 0.965, 0.01
SPOILED_STEP = 7


class Net(nn.Module):
    """Tied embeddings, odd sizes, gains, a frozen layer; no bias of a layer, which ZeRO 3 adds in another precision."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, 7)
        self.inner = nn.Linear(7, 11, bias=False)
        self.norm = nn.LayerNorm(11)
        self.frozen = nn.Linear(11, 9, bias=False)
        self.outer = nn.Linear(9, 7, bias=False)
        self.decoder = nn.Linear(7, WORDS, bias=False)
        self.decoder.weight = self.table.weight
        self.frozen.requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.norm(self.inner(self.table(ids))).relu()
        return self.decoder(self.outer(self.frozen(hidden).relu()).mean(1))


class Objective(nn.Module):
    """The network with its loss, as an engine takes it; ``spoil`` is the gradient of one weight."""

    def __init__(self, model: Net, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.model, self.autocast = model, autocast

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", self.autocast, enabled=self.autocast is not None):
            logits = self.model(batch["ids"]).float()
        loss = F.cross_entropy(logits, batch["labels"])
        if "spoil" in batch:
            loss = loss + batch["spoil"] * self.model.norm.weight[-1]
        return loss, loss.detach().expand(2, 3)


def make_objective(autocast: torch.dtype | None = None) -> Objective:
    """The same weights whoever asks."""
    torch.manual_seed(0)
    return Objective(Net(), autocast)


def batch_of(step: int, rows: slice, *, words: int = WORDS, of: int = ROWS) -> dict[str, Tensor]:
    """Rows of a step's batch of so many, of the first ``words`` words."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(0, words, (of, 5), generator=generator)
    return {"ids": ids[rows], "labels": ids.max(1).values[rows]}


def train_plainly(
    *, parts: int = 1, spoiled: int | None = None, autocast: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Tiger by its definition, on the gradient of each step's whole batch, in one process.

    Args:
        parts: Into how many equal micro-batches the batch is cut; in bf16 the gradient depends on it.
        spoiled: Which micro-batch of ``SPOILED_STEP`` has a bad gradient of the gains, not the first.
        autocast: Dtype of products.
    """
    objective = make_objective(autocast)
    groups = build_param_groups(objective.model)
    tensors = [
        (name, param, group["role"], torch.zeros_like(param))
        for group in groups
        for name, param in zip(group["names"], group["params"], strict=True)
    ]
    for step in range(STEPS):
        bad = spoiled if step == SPOILED_STEP else None
        for part in range(parts):
            start = part * ROWS // parts
            objective.zero_grad()
            objective(batch_of(step, slice(start, start + ROWS // parts)))[0].backward()
            for name, param, _, momentum in tensors:
                if (part, name) != (bad, "norm.weight"):
                    fold_gradient_(momentum, param.grad, decay=BETA, weight=(1 - BETA) / parts, is_first=part == 0)
        for name, param, role, momentum in tensors:
            if bad is not None and name == "norm.weight":
                param.detach().mul_(0.99)
            else:
                tiger_update_(param, momentum, role=role, lr=LR, weight_decay=DECAY)
    weights = {name: param.detach() for name, param in objective.model.named_parameters()}
    return weights | {f"momentum.{name}": momentum for name, _, _, momentum in tensors}


@dataclass(frozen=True)
class Case:
    """One training."""

    stage: int = 0
    accumulation: int = 1
    optimizer: dict[str, Any] = field(default_factory=dict)
    autocast: torch.dtype | None = None
    spoiled: int | None = None
    words: int = WORDS
    engine: str = "deepspeed"
    gather_all: bool = False
    """Whether stage 3 gathers small tensors anew in every micro-step, as it does large ones."""
    rows: int = ROWS
    """Of a step."""


CASES = {
    f"{accumulate}-{accumulation}-stage-{stage}": Case(stage, accumulation, {"accumulate": accumulate})
    for stage, (accumulate, accumulation) in product((0, 1, 2, 3), (("momentum", 1), ("momentum", 4), ("gradient", 4)))
}
CASES |= {f"bf16-stage-{stage}": Case(stage, autocast=torch.bfloat16) for stage in (0, 1, 2, 3)}
CASES |= {f"spoiled-stage-{stage}": Case(stage, 2, spoiled=1) for stage in (1, 2, 3)}
# What they send is counted. The net's weights are fewer than what stage 3 gathers for each micro-step by itself.
COUNTED = {
    name: replace(case, gather_all=True) for name, case in CASES.items() if name.startswith(("momentum", "gradient"))
}
SMALLEST_TENSOR = 22
"""Elements; what is smaller are norms, flags and the gains of a layer."""
# Compared with plain torch; gradients are accumulated, where squares of them do not depend on how they were cut. Some
# words never occur, for lazy rows.
OPTIONS = {
    name: Case(stage, 2, {"accumulate": "gradient", **settings}, words=9)
    for name, stage, settings in (
        ("lazy-rows", 1, {"embeddings": "lazy"}),
        ("lazy-rows-sharded", 3, {"embeddings": "lazy"}),
        ("adamw-for-embeddings", 2, {"embeddings": "adamw"}),
        ("adamw", 3, {"name": "adamw"}),
        ("clipping", 2, {"clip": {"norm": 0.5}}),
        ("gradient-dropout", 1, {"gradient_keep": 0.5}),
        ("weissi", 3, {"weissi": 0.1, "weissi_sparsity": 0.05}),
    )
}


@contextmanager
def _gathering(everything: bool) -> Iterator[None]:
    make = engine_module.make_deepspeed_config

    def changed(*arguments: Any, **more: Any) -> dict[str, Any]:
        settings = make(*arguments, **more)
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return settings

    with patch.object(engine_module, "make_deepspeed_config", changed if everything else make):
        yield


def train(
    case: Case, folder: Path, *, rank: int = 0, ranks: int = 1, steps: range = range(STEPS), start: Any = None
) -> dict[str, Tensor]:
    """Whole weights and moments after ``steps``, on rank 0; from ``start``, which is such a result."""
    rows = case.rows // (ranks * case.accumulation)
    config = TrainConfig(
        steps=STEPS, global_batch_size=case.rows, micro_batch_size=rows, num_workers=ranks,
        compute={"zero_stage": case.stage, "engine": case.engine},
    )  # fmt: skip
    objective = make_objective(case.autocast)
    settings = OptimizerConfig(lr=LR, weight_decay=DECAY, **case.optimizer)
    optimizer = build_optimizer(
        settings, objective.model, accumulation_steps=case.accumulation, seed=0, partitioned=case.stage > 0
    )
    if start is not None:
        with torch.no_grad():
            for name, target in {**dict(objective.model.named_parameters()), **optimizer.named_moments()}.items():
                target.copy_(start[name])
        optimizer.restart_at(steps[0])
    phase = plan_phases(config, [8], [rows])[0]
    with _gathering(case.gather_all):
        engine: Any = build_engine(config, phase, objective, optimizer, folder)  # type: ignore[arg-type]  # a smaller objective
    for step, micro in product(steps, range(case.accumulation)):
        first = (micro * ranks + rank) * rows
        batch = batch_of(step, slice(first, first + rows), words=case.words, of=case.rows)
        if (step, micro, rank) == (SPOILED_STEP, case.spoiled, ranks - 1):
            batch["spoil"] = torch.tensor(math.inf)
        optimizer.observe_tokens(batch["ids"], batch["labels"])
        engine.micro_step(batch)
    if case.spoiled is not None:
        assert optimizer.nonfinite_report().steps == {"norm.weight": 1}
    if case.engine == "deepspeed":
        assert engine._engine.global_steps == len(steps)
        assert engine._engine.get_lr()[0] == settings.lr
    if case.stage:
        weights, moments = engine.full_tensors()
    else:
        weights = {name: param.detach() for name, param in objective.model.named_parameters()}
        moments = optimizer.named_moments()
    return {name: tensor.clone() for name, tensor in {**weights, **moments}.items()}
