"""Trains one small encoder with one optimizer: the loss on the way, processor seconds, bytes of states."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.run_store import Outcome, Settings
from benchmarks.sample_batches import heldout_batches, training_batches
from kexue_train.batches.dataset import SampleDataset
from kexue_train.model import RoFormerV2Config, RoFormerV2ForPreTraining
from kexue_train.optim.build import AccumulatingOptimizer, build_optimizer, set_learning_rate
from kexue_train.optim.config import OptimizerConfig
from kexue_train.optim.library import GradientAccumulation, build_library_optimizer
from kexue_train.optim.options import Options
from kexue_train.optim.param_groups import build_param_groups
from kexue_train.optim.schedule import Knots
from kexue_train.train.config import ObjectiveConfig
from kexue_train.train.data import Tensors
from kexue_train.train.heads import pretraining_heads
from kexue_train.train.objective import PretrainingObjective, mean_scores

_MICRO_BATCH_ROWS = 16
_HELDOUT_ROWS = 512
_FINAL_MULTIPLIER = 0.05
_TRAINING_POINTS = 20
_PROTOCOL = 1
"""A new number when the code below changes what a run with the same settings learns."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What is trained: size of the encoder, rows of a step, length of the training."""

    layers: int
    hidden: int
    rows: int
    steps: int
    warmup_share: float = 0.1
    """Of the steps; from there the learning rate falls in a straight line to 5 %."""

    @property
    def title(self) -> str:
        """Short name."""
        warmup = "" if self.warmup_share == 0.1 else f", warm-up {self.warmup_share:.0%}"
        return f"{self.layers}x{self.hidden}, {self.rows} rows, {self.steps} steps{warmup}"


@dataclass(frozen=True, slots=True)
class Rule:
    """An optimizer with all settings but its learning rate."""

    name: str
    beta: float | None = None
    """Of Tiger; the others have the values of their publications."""
    weight_decay: float = 0.01

    @property
    def title(self) -> str:
        """Name, and β if it is set."""
        titles = {"adamw": "AdamW", "lamb": "LAMB", "lion": "Lion", "tiger": "Tiger"}
        return titles[self.name] + ("" if self.beta is None else f" β {self.beta:g}")


def settings_of(dataset: SampleDataset, cell: Cell, rule: Rule, lr: float, seed: int) -> Settings:
    """Return all that the outcome of ``train`` depends on."""
    return {
        "protocol": _PROTOCOL, "samples": dataset.content_digest, "heldout_rows": _HELDOUT_ROWS, **asdict(cell),
        "optimizer": rule.name, "beta": rule.beta, "weight_decay": rule.weight_decay, "lr": lr, "seed": seed,
    }  # fmt: skip


def train(dataset: SampleDataset, cell: Cell, rule: Rule, lr: float, seed: int) -> Outcome:
    """Train once; a training whose loss is NaN or infinite ends there.

    Returns:
        ``curve``: (step, held-out MLM loss in nats, NSP accuracy) at the end and after half, a quarter, ... of the
        steps, the earliest from step 100 on; ``training``: (step, mean MLM loss) of each twentieth of the steps;
        ``processor_seconds`` without those for ``curve``; ``parameters``; ``state_bytes`` of the optimizer;
        ``gradient_bytes`` that exist between micro-batches.
    """
    torch.manual_seed(seed)
    objective = make_objective(dataset, layers=cell.layers, hidden=cell.hidden, rows=min(cell.rows, _MICRO_BATCH_ROWS))
    k = max(1, cell.rows // _MICRO_BATCH_ROWS)
    optimizer = make_optimizer(rule, objective.model, lr=lr, accumulation_steps=k, seed=seed)
    schedule = Knots({max(1, round(cell.steps * cell.warmup_share)): 1.0, cell.steps: _FINAL_MULTIPLIER})
    rows = min(cell.rows, _MICRO_BATCH_ROWS)
    batches = training_batches(dataset, cell.steps * k, rows, seed)
    heldout = list(heldout_batches(dataset, _HELDOUT_ROWS))
    curve: list[tuple[int, float, float]] = []
    training: list[tuple[int, float]] = []
    points, every = curve_points(cell.steps), max(1, cell.steps // _TRAINING_POINTS)
    sums, spent, start = torch.zeros(3), 0.0, time.process_time()
    for step in range(1, cell.steps + 1):
        set_learning_rate(optimizer, schedule.multiplier(step))
        for _ in range(k):
            batch = next(batches)
            optimizer.observe_tokens(batch["input_ids"], batch["prediction_labels"])
            loss, scores = objective(batch)
            loss.backward()
            optimizer.step()
            sums += scores[0]
        if step % every == 0:
            training.append((step, float(sums[0] / sums[2])))
            sums.zero_()
            if not math.isfinite(training[-1][1]):
                curve.append((step, math.nan, math.nan))
                break
        if step in points:
            spent += time.process_time() - start
            curve.append((step, *_score(objective, heldout)))
            start = time.process_time()
    parameters = sum(p.numel() for p in objective.model.parameters())
    return {
        "curve": curve, "training": training, "processor_seconds": spent, "parameters": parameters,
        "state_bytes": sum(t.numel() * t.element_size() for t in optimizer.named_moments().values()),
        "gradient_bytes": 0 if rule.name == "tiger" else 4 * parameters,
    }  # fmt: skip


def curve_points(steps: int) -> set[int]:
    """Return the last step, half of it and so on, down to 100."""
    points = {steps}
    while min(points) >= 200:
        points.add(min(points) // 2)
    return points


def make_optimizer(
    rule: Rule, model: nn.Module, *, lr: float, accumulation_steps: int, seed: int
) -> AccumulatingOptimizer:
    """Build it as a training run does; AdamW is torch's fused one, on gradients that add up."""
    if rule.name == "adamw":
        inner = build_library_optimizer("adamw", build_param_groups(model), lr=lr, weight_decay=rule.weight_decay)
        for group in inner.param_groups:
            group["initial_lr"] = lr
        return GradientAccumulation(inner, accumulation_steps=accumulation_steps, options=Options())
    config: dict[str, Any] = {"name": rule.name, "lr": lr, "weight_decay": rule.weight_decay}
    config |= {"beta": rule.beta} if rule.name == "tiger" else {"accumulate": "gradient"}
    return build_optimizer(OptimizerConfig(**config), model, accumulation_steps=accumulation_steps, seed=seed)


def make_objective(dataset: SampleDataset, *, layers: int, hidden: int, rows: int) -> PretrainingObjective:
    """A fresh encoder with heads of 64 and its two losses, for micro-batches of ``rows``."""
    model = RoFormerV2ForPreTraining(
        RoFormerV2Config(
            vocab_size=dataset.vocab_size,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            intermediate_size=4 * hidden,
            max_position_embeddings=dataset.seq_len,
            hidden_dropout_prob=0.0,  # no row is seen twice
            attention_probs_dropout_prob=0.0,
        )
    )
    objective = PretrainingObjective(model, pretraining_heads(ObjectiveConfig(nsp_weight=0.5)))
    objective.scale_to(dataset, rows)
    return objective


@torch.no_grad()
def _score(objective: PretrainingObjective, heldout: list[Tensors]) -> tuple[float, float]:
    sums = torch.stack([objective(batch)[1] for batch in heldout]).sum(dim=0)
    scores = mean_scores(sums.tolist(), objective.heads)
    return scores["mlm_loss"], scores["nsp_accuracy"]
