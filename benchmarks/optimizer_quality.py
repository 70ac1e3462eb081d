"""How well the same small encoder learns in the same steps under each optimizer, its learning rate tuned."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.optimizer_training import make_objective
from benchmarks.rate_search import best_power
from kexue_train.batches.collate import make_batch
from kexue_train.batches.dataset import SampleDataset
from kexue_train.batches.loader import Plan, iter_batches
from kexue_train.foundation.errors import ConfigError
from kexue_train.model.linear_cross_entropy import LabelScores
from kexue_train.optim.build import AccumulatingOptimizer, build_optimizer, set_learning_rate
from kexue_train.optim.config import OptimizerConfig
from kexue_train.optim.library import GradientAccumulation, build_library_optimizer
from kexue_train.optim.options import Options
from kexue_train.optim.param_groups import build_param_groups
from kexue_train.optim.schedule import Knots
from kexue_train.train.data import Tensors, to_device, to_tensors
from kexue_train.train.objective import PretrainingObjective

_HELDOUT_BATCH = 64


@dataclass(frozen=True, slots=True)
class Task:
    """What every optimizer has to do."""

    samples: str
    layers: int = 2
    hidden: int = 128
    steps: int = 400
    micro_batch_size: int = 4
    accumulation_steps: int = 2
    heldout_rows: int = 256
    curve_points: int = 8


@dataclass(frozen=True, slots=True)
class Contender:
    """An optimizer of the comparison."""

    name: str
    title: str
    lr: float
    """Where the search for the learning rate begins; unused with ``lr_of``."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the ``optimizer`` section; empty for torch's own AdamW."""
    lr_of: str = ""
    """The contender whose learning rate it shares, for it is meant to take the same steps."""


CONTENDERS = (
    Contender("adamw", "AdamW (torch)", 2e-3),
    Contender("lion", "Lion", 4e-4, {"name": "lion", "accumulate": "gradient", "weight_decay": 0.1}),
    Contender("tiger", "Tiger, momentum", 8e-3, {"name": "tiger"}),
    Contender("tiger-gradient", "Tiger, gradient", 0, {"name": "tiger", "accumulate": "gradient"}, "tiger"),
    Contender("tiger-bf16", "Tiger, bf16 states", 0, {"name": "tiger", "states": "bf16"}, "tiger"),
    Contender("tiger-lazy", "Tiger, lazy rows", 0, {"name": "tiger", "embeddings": "lazy"}, "tiger"),
    Contender("tiger-adamw", "Tiger, AdamW embeddings", 0, {"name": "tiger", "embeddings": "adamw"}, "tiger"),
)


@dataclass(frozen=True, slots=True)
class Run:
    """One training."""

    contender: str
    lr: float
    seed: int
    embedding_lr: float
    """Of embeddings=adamw, else 0."""
    curve: list[tuple[int, float]]
    """(step, held-out MLM loss in nats); NaN or infinite where training came to grief."""
    seconds: float

    @property
    def final(self) -> float:
        """Loss after the last step."""
        return self.curve[-1][1]


class Runs:
    """All runs of one task; those in the JSON file are not run again."""

    def __init__(self, task: Task, json_path: Path | None, facts: dict[str, Any]) -> None:
        self.task, self._path, self._facts = task, json_path, facts
        self._dataset = SampleDataset(Path(task.samples))
        self._console = Console(stderr=True, highlight=False)
        self.done: list[Run] = []
        if json_path and json_path.exists():
            found = json.loads(json_path.read_text(encoding="utf-8"))
            if found["task"] != asdict(task):
                raise ConfigError(f"{json_path} holds runs of another task, {found['task']}; name another file")
            self.done = [Run(**run) for run in found["runs"]]

    def get(self, contender: Contender, lr: float, seed: int, embedding_lr: float = 0.0) -> Run:
        """The run with these settings, from the file or anew."""
        wanted = (contender.name, lr, seed, embedding_lr)
        for run in self.done:
            if (run.contender, run.lr, run.seed, run.embedding_lr) == wanted:
                return run
        start = time.perf_counter()
        curve = list(train(self.task, self._dataset, contender, lr=lr, seed=seed, embedding_lr=embedding_lr))
        self.done.append(Run(*wanted, curve, time.perf_counter() - start))
        self._console.print(f"{contender.name}, lr {lr:g}, seed {seed}: {curve[-1][1]:.4f}")
        if self._path:
            raw = self._facts | {"task": asdict(self.task), "runs": [asdict(run) for run in self.done]}
            self._path.write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
        return self.done[-1]


def compare(runs: Runs, seeds: int) -> dict[str, list[Run]]:
    """The runs of each contender with its best learning rate, one for each seed."""
    best: dict[str, float] = {}
    for contender in CONTENDERS:
        best[contender.name] = best[contender.lr_of] if contender.lr_of else tune(runs, contender)
    return {
        c.name: [
            runs.get(c, best[c.name], seed, best["adamw"] if c.settings.get("embeddings") == "adamw" else 0.0)
            for seed in range(seeds)
        ]
        for c in CONTENDERS
    }


def tune(runs: Runs, contender: Contender) -> float:
    """The learning rate, a power of two times the first, that both neighbours are worse than; by seed 0."""
    power = best_power(lambda power: runs.get(contender, contender.lr * 2.0**power, 0).final)
    return contender.lr * 2.0**power


def train(
    task: Task, dataset: SampleDataset, contender: Contender, *, lr: float, seed: int, embedding_lr: float
) -> Iterator[tuple[int, float]]:
    """Train once; yields (step, held-out MLM loss in nats). Each seed has weights, rows and masks of its own."""
    torch.manual_seed(seed)
    objective = make_objective(dataset, layers=task.layers, hidden=task.hidden, rows=task.micro_batch_size)
    optimizer = make_optimizer(contender, objective.model, task, lr=lr, seed=seed, embedding_lr=embedding_lr)
    plan = Plan(
        seed=seed, rank=0, world_size=1, micro_batch_size=task.micro_batch_size,
        accumulation_steps=task.accumulation_steps, global_batch_size=task.micro_batch_size * task.accumulation_steps,
    )  # fmt: skip
    batches = map(to_tensors, iter_batches(dataset, plan, start_step=seed * task.steps))
    heldout = list(_heldout(task, dataset))
    schedule = Knots({task.steps // 10: 1.0, task.steps: 0.05})
    points = {round(task.steps * point / task.curve_points) for point in range(1, task.curve_points + 1)}
    for step in range(1, task.steps + 1):
        set_learning_rate(optimizer, schedule.multiplier(step))
        for batch in islice(batches, task.accumulation_steps):
            optimizer.observe_tokens(batch["input_ids"], batch["prediction_labels"])
            _forward(objective, batch)[0].backward()
            optimizer.step()
        if step in points:
            yield step, heldout_loss(objective, heldout)


def make_optimizer(
    contender: Contender, model: nn.Module, task: Task, *, lr: float, seed: int, embedding_lr: float
) -> AccumulatingOptimizer:
    """As a training run makes it, or torch's AdamW for the contender without settings; casts the model if it must."""
    k = task.accumulation_steps
    if not contender.settings:
        inner = build_library_optimizer("adamw", build_param_groups(model), lr=lr, weight_decay=0.01)
        for group in inner.param_groups:
            group["initial_lr"] = lr
        return GradientAccumulation(inner, accumulation_steps=k, options=Options())
    config = OptimizerConfig(lr=lr, **contender.settings, **({"embedding_lr": embedding_lr} if embedding_lr else {}))
    if config.states == "bf16":
        model.bfloat16()
    return build_optimizer(config, model, accumulation_steps=k, seed=seed)


@torch.no_grad()
def heldout_loss(objective: PretrainingObjective, batches: Sequence[Tensors]) -> float:
    """Mean over the predictions of all ``batches``."""
    mlm = LabelScores(*sum(_forward(objective, batch)[1][0] for batch in batches))
    return float(mlm.loss / mlm.num_labels)


def _forward(objective: PretrainingObjective, batch: Tensors) -> Any:
    """Products are fp32 also of bf16 weights, so that nothing but the states differs."""
    weights: dict[str, Tensor] = dict(objective.named_parameters())
    device = next(iter(weights.values())).device
    return functional_call(objective, {n: w.float() for n, w in weights.items()}, (to_device(batch, device),))


def _heldout(task: Task, dataset: SampleDataset) -> Iterator[Tensors]:
    rows = dataset.heldout_rows[: task.heldout_rows]
    for start in range(0, len(rows), _HELDOUT_BATCH):
        yield to_tensors(make_batch(dataset, rows[start : start + _HELDOUT_BATCH], 0, seed=0))


def quality_table(found: dict[str, list[Run]]) -> Table:
    """Final losses with their spread over seeds, and the means on the way."""
    steps = [step for step, _ in next(iter(found.values()))[0].curve]
    table = Table("optimizer", "lr", *(f"step {step}" for step in steps[1:-1:2]), f"step {steps[-1]}", "over AdamW")
    titles = {contender.name: contender.title for contender in CONTENDERS}
    for name, runs in found.items():
        means = {step: statistics.fmean(run.curve[i][1] for run in runs) for i, step in enumerate(steps)}
        table.add_row(
            titles[name], f"{runs[0].lr:g}", *(f"{means[step]:.3f}" for step in steps[1:-1:2]),
            mean_and_deviation([run.final for run in runs]),
            mean_and_deviation([run.final - base.final for run, base in zip(runs, found["adamw"], strict=True)], "+"),
        )  # fmt: skip
    return table


def mean_and_deviation(values: Sequence[float], sign: str = "") -> str:
    """Mean and, of several values, their standard deviation."""
    mean = f"{statistics.fmean(values):{sign}.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean
