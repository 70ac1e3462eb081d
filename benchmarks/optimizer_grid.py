"""The grid of trainings that settles an optimizer's learning rate and β by size, batch and length of the training.

For each optimizer of a cell the learning rate is doubled or halved until both neighbours of the best are worse, by
seed 0, from the best one of the nearest cell that is tuned; then the best one is trained with the other seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.optimizer_training import Cell, Rule
from benchmarks.rate_search import best_power
from benchmarks.run_store import Outcome, OutOfTimeError

ADAMW, LAMB, LION = Rule("adamw"), Rule("lamb"), Rule("lion", weight_decay=0.1)
TIGERS = tuple(Rule("tiger", beta) for beta in (0.965, 0.9, 0.8, 0.945))
_FIRST_LR = {"adamw": 2e-3, "lamb": 8e-3, "lion": 4e-4, "tiger": 8e-3}
"""Powers of two times these are tried; the search of the first cell begins here."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the grid: these optimizers in this cell, the best learning rate of each with so many seeds."""

    cell: Cell
    rules: tuple[Rule, ...] = (ADAMW, *TIGERS, LION, LAMB)
    seeds: int = 3


_SHORT, _LONGER = Cell(2, 128, 8, 400), Cell(2, 128, 8, 1600)
_SOME = (ADAMW, *TIGERS)
_WARMED = (ADAMW, Rule("tiger", 0.9))
PLAN = (
    Stage(_SHORT, _SOME, 1),
    Stage(_LONGER, _SOME, 1),
    Stage(_SHORT, seeds=3),
    Stage(Cell(2, 128, 64, 400), (ADAMW, TIGERS[0], TIGERS[1]), 1),
    Stage(_LONGER, _SOME),
    Stage(Cell(2, 128, 8, 400, 0.025), _WARMED, 1),
    Stage(Cell(2, 128, 8, 400, 0.3), _WARMED, 1),
    Stage(_LONGER),
    Stage(Cell(2, 128, 64, 400)),
    Stage(Cell(2, 128, 8, 6400)),
    Stage(Cell(3, 256, 8, 400)),
    Stage(Cell(3, 256, 8, 1600), _SOME),
    Stage(Cell(3, 256, 64, 400), _SOME),
    Stage(Cell(2, 128, 64, 1600)),
    Stage(Cell(3, 256, 8, 6400), _SOME),
    Stage(Cell(3, 256, 64, 1600), _SOME),
)
"""In the order in which it is run: what tells most for its cost first."""


@dataclass(frozen=True, slots=True)
class Settled:
    """An optimizer in a cell, its learning rate tuned."""

    cell: Cell
    rule: Rule
    lr: float
    outcomes: tuple[Outcome, ...]
    """Those of seeds 0, 1, ...; at least the first."""

    @property
    def finals(self) -> list[float]:
        """Held-out loss after the last step, by seed."""
        return [outcome["curve"][-1][1] for outcome in self.outcomes]


TrainOrFind = Callable[[Cell, Rule, float, int], Outcome]
"""(cell, rule, learning rate, seed) -> outcome; raises ``OutOfTimeError`` for a run that may not begin any more."""


def walk(plan: tuple[Stage, ...], train: TrainOrFind) -> list[Settled]:
    """Go through ``plan`` as far as ``train`` goes along; returns what is tuned, once for each cell and optimizer."""
    powers: dict[tuple[Cell, Rule], int] = {}
    found: dict[tuple[Cell, Rule], Settled] = {}
    for stage in plan:
        for seed in range(stage.seeds):
            for rule in stage.rules:
                key = stage.cell, rule
                try:
                    if key not in powers:
                        powers[key] = _tune(stage.cell, rule, powers, train)
                    lr = _FIRST_LR[rule.name] * 2.0 ** powers[key]
                    outcome = train(stage.cell, rule, lr, seed)
                except OutOfTimeError:
                    continue
                known = found.get(key)
                if known is None or len(known.outcomes) == seed:
                    outcomes = (*(known.outcomes if known else ()), outcome)
                    found[key] = Settled(stage.cell, rule, lr, outcomes)
    return list(found.values())


def _tune(cell: Cell, rule: Rule, powers: dict[tuple[Cell, Rule], int], train: TrainOrFind) -> int:
    def loss(power: int) -> float:
        final: float = train(cell, rule, _FIRST_LR[rule.name] * 2.0**power, 0)["curve"][-1][1]
        return final

    nearest = _nearest(cell, rule, list(powers))
    if nearest is None:
        return best_power(loss)
    is_longer = cell.steps / cell.rows > nearest[0].steps / nearest[0].rows  # wants smaller steps
    return best_power(loss, powers[nearest], -1 if is_longer else 1)


def _nearest(cell: Cell, rule: Rule, tuned: list[tuple[Cell, Rule]]) -> tuple[Cell, Rule] | None:
    """Return which tuned optimizer of that name is likely to have about the same best learning rate."""

    def distance(other: tuple[Cell, Rule]) -> float:
        there, known = other
        pairs = ((cell.hidden, there.hidden), (cell.rows, there.rows), (cell.steps, there.steps))
        between = sum(abs(math.log2(a / b)) for a, b in pairs)
        return between + abs((rule.beta or 0) - (known.beta or 0)) * 10

    return min((other for other in tuned if other[1].name == rule.name), key=distance, default=None)
