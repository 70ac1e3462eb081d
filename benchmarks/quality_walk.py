"""All runs of the comparison in the order of their worth; each is found in the file or done."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from benchmarks.quality_contenders import ABLATIONS, OURS, PEERS, Contender
from benchmarks.quality_learners import Task
from benchmarks.run_store import Outcome, OutOfTimeError

LOOP, TRAINER = "plain loop", "Trainer"
TrainOrFind = Callable[[str, Task, Contender, float, int], Outcome]
"""(loop, task, contender, learning rate, seed) -> outcome; raises ``OutOfTimeError`` for a run that may not begin."""
SpeedOrFind = Callable[[], dict[str, list[float]]]


@dataclass(slots=True)
class Findings:
    """What there is so far."""

    lrs: dict[str, float] = field(default_factory=dict)
    """The best learning rate, by contender."""
    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)
    """With it, by contender: of seeds 0, 1, ..."""
    speed: dict[str, list[float]] = field(default_factory=dict)
    """Processor seconds per step, a value a round, by contender."""
    trainer: Outcome | None = None
    """Of the first peer in the loop of transformers, seed 0."""

    def seconds_per_step(self, name: str) -> float:
        """Return the median of the rounds, or that of its own first training; NaN without either."""
        if name in self.speed:
            return sorted(self.speed[name])[len(self.speed[name]) // 2]
        return self.outcomes[name][0]["curve"][-1][2] / self.outcomes[name][0]["curve"][-1][0]


def walk(task: Task, search_steps: int, seeds: int, train: TrainOrFind, measure: SpeedOrFind) -> Findings:
    """Search learning rates in trainings of ``search_steps``, train everybody with every seed, and so on.

    The order: rates of ours and peers; these with each seed in turn; interleaved speeds; the peer in ``Trainer``;
    ablations with each seed. Where no run may begin any more, what is known is returned.
    """
    found, searched = Findings(), replace(task, steps=search_steps)
    try:
        for contender in (*OURS, *PEERS):
            found.lrs[contender.name] = _best_lr(searched, contender, train)
        for seed in range(seeds):
            for contender in (*OURS, *PEERS):
                _add(found, task, contender, seed, train)
            if not found.speed:
                found.speed = measure()
            if found.trainer is None:
                found.trainer = train(TRAINER, task, PEERS[0], found.lrs[PEERS[0].name], 0)
        for seed in range(seeds):
            for contender in ABLATIONS:
                found.lrs[contender.name] = found.lrs[OURS[0].name]
                _add(found, task, contender, seed, train)
    except OutOfTimeError:
        pass
    return found


def _add(found: Findings, task: Task, contender: Contender, seed: int, train: TrainOrFind) -> None:
    outcome = train(LOOP, task, contender, found.lrs[contender.name], seed)
    found.outcomes.setdefault(contender.name, []).append(outcome)


def _best_lr(task: Task, contender: Contender, train: TrainOrFind) -> float:
    def final(lr: float) -> float:
        loss: float = train(LOOP, task, contender, lr, 0)["curve"][-1][3]
        return loss if math.isfinite(loss) else math.inf

    return min(contender.lrs, key=final)
