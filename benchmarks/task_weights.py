"""Two tasks that want one small layer for themselves: what each weighting makes of them.

``python -m benchmarks.task_weights`` prints a Markdown table: how much of the loss of guessing each task has left after
the last step, and the mean cosine of the weighted gradient with that of each task, both of held-out rows.

Task "classes" is to tell 8 classes, "numbers" to predict 6 numbers, whose loss is multiplied by 40. Both read a vector
of 32 through one shared layer of 8. Each follows from 8 directions of it, of which they have 4 in common.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads
from torch import Tensor, nn

from kexue_train.optim import Tiger, build_param_groups
from kexue_train.train.weighting.build import build_weights
from kexue_train.train.weighting.config import WeightingConfig
from kexue_train.train.weighting.constant_units import guessing_loss

CLASS_TASK, NUMBER_TASK = "classes", "numbers"
ORDER = (CLASS_TASK, CLASS_TASK, NUMBER_TASK, CLASS_TASK)
"""Tasks of the micro-batches of a step."""
INPUTS, WIDTH, CLASSES, NUMBERS, FACTORS, SHARED_FACTORS = 32, 8, 8, 6, 8, 4
SCALE, NOISE = 40.0, 0.3
ROWS, HELDOUT_ROWS = 32, 4096
LOOK_EVERY = 10
"""Steps from one look at the gradients of held-out rows to the next."""
SCHEMES = (
    WeightingConfig(),
    WeightingConfig(scheme="initial"),
    WeightingConfig(scheme="prior"),
    WeightingConfig(scheme="online"),
    WeightingConfig(scheme="generalised-mean", gamma=0.0),
    WeightingConfig(scheme="generalised-mean", gamma=3.0),
    WeightingConfig(scheme="gradient-norm"),
    WeightingConfig(scheme="min-norm"),
    WeightingConfig(scheme="main-with-guards", main=CLASS_TASK),
    WeightingConfig(scheme="main-with-guards", main=NUMBER_TASK),
)


@dataclass(frozen=True)
class Outcome:
    """What a run ends with."""

    left: tuple[float, float]
    """Loss of either task over that of guessing, on held-out rows."""
    served: tuple[float, float]
    """Cosine of the weighted gradient of a step with that of the task, in the mean."""


class Data:
    """Rows of both tasks, drawn from fixed directions."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        directions = torch.linalg.qr(self._draw(INPUTS, 2 * FACTORS - SHARED_FACTORS))[0]
        self._to_labels = directions[:, :FACTORS] @ self._draw(FACTORS, CLASSES)
        self._to_values = directions[:, -FACTORS:] @ self._draw(FACTORS, NUMBERS)

    def rows(self, task: str, number: int) -> tuple[Tensor, Tensor]:
        """Return inputs [number, INPUTS] and what is to be told of them."""
        inputs = self._draw(number, INPUTS)
        if task == CLASS_TASK:
            noise = self._draw(number, CLASSES)
            return inputs, (inputs @ self._to_labels + NOISE * noise).argmax(1)
        noise = self._draw(number, NUMBERS)
        return inputs, inputs @ self._to_values + NOISE * noise

    def _draw(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator)


class Model(nn.Module):
    """One layer that both tasks share, and a head for each."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(INPUTS, WIDTH)
        self.heads = nn.ModuleDict({CLASS_TASK: nn.Linear(WIDTH, CLASSES), NUMBER_TASK: nn.Linear(WIDTH, NUMBERS)})

    def loss(self, task: str, rows: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean loss."""
        found = self.heads[task](torch.tanh(self.shared(rows[0])))
        return F.cross_entropy(found, rows[1]) if task == CLASS_TASK else SCALE * F.mse_loss(found, rows[1])


def train(config: WeightingConfig, order: Sequence[str], *, steps: int, lr: float, seed: int) -> Outcome:
    """Train on the tasks of ``order`` in every step; tasks that it has not keep their first loss."""
    torch.manual_seed(seed)
    data, model = Data(seed), Model()
    heldout = {task: data.rows(task, HELDOUT_ROWS) for task in (CLASS_TASK, NUMBER_TASK)}
    guessing = {task: _guess(task, rows) for task, rows in heldout.items()}
    optimizer = Tiger(build_param_groups(model), accumulation_steps=len(order))
    weights = build_weights(
        config, guessing, micro_batches_per_step=len(order), seed=seed, optimizer=optimizer,
        shared=model.shared.parameters(),
    )  # fmt: skip
    served: list[list[float]] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        weights.begin_step({task: order.count(task) for task in set(order)})
        total = dict.fromkeys(order, 0.0)
        for task in order:
            loss = model.loss(task, data.rows(task, ROWS))
            weight = weights.weight(task, loss)
            total[task] += float(weight)
            (weight * loss).backward()
            if step % LOOK_EVERY == 0 and optimizer.ends_step:
                served.append(_served(model, heldout, total))
            optimizer.step()
        weights.end_step()
    with torch.no_grad():
        left = [float(model.loss(task, rows)) / guessing[task] for task, rows in heldout.items()]
    cosines = torch.tensor(served).mean(0).tolist()
    return Outcome((left[0], left[1]), (cosines[0], cosines[1]))


def _guess(task: str, rows: tuple[Tensor, Tensor]) -> float:
    if task == CLASS_TASK:
        return guessing_loss(torch.bincount(rows[1], minlength=CLASSES).tolist())
    return SCALE * float(rows[1].var(0, correction=0).mean())


def _served(model: Model, rows: dict[str, tuple[Tensor, Tensor]], total: dict[str, float]) -> list[float]:
    """Return the cosine of the weighted sum of the tasks' gradients with each of them."""
    shared = list(model.shared.parameters())
    gradients = {
        task: torch.cat([part.flatten() for part in torch.autograd.grad(model.loss(task, own), shared)])
        for task, own in rows.items()
    }
    update = torch.stack([weight * gradients[task] for task, weight in total.items()]).sum(0)
    return [float(F.cosine_similarity(gradient, update, dim=0)) for gradient in gradients.values()]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args(arguments)
    print("| weighting | classes: loss left | numbers: loss left | classes: cosine | numbers: cosine |")
    print("|---|---|---|---|---|")
    runs = [(f"equal, {task} alone", SCHEMES[0], (task,) * len(ORDER)) for task in (CLASS_TASK, NUMBER_TASK)]
    for title, config, order in [*runs, *((_title(config), config, ORDER) for config in SCHEMES)]:
        found = [train(config, order, steps=args.steps, lr=args.lr, seed=seed) for seed in range(args.seeds)]
        cells = [f"{statistics.mean(run.left[task] for run in found):.3f}" for task in range(2)]
        cells += [f"{statistics.mean(run.served[task] for run in found):.2f}" for task in range(2)]
        for place, task in enumerate((CLASS_TASK, NUMBER_TASK)):
            if task not in order:
                cells[place] = cells[place + 2] = "–"
        print(f"| {title} | {' | '.join(cells)} |", flush=True)


def _title(config: WeightingConfig) -> str:
    more = f", γ = {config.gamma:g}" if config.scheme == "generalised-mean" else ""
    return config.scheme + more + (f", main {config.main}" if config.main else "")


if __name__ == "__main__":
    main()
