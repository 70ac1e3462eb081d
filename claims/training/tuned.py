"""Optimizers beside each other: the rate of each tuned on the first seed, then the same seeds for all."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from claims.claim import Setting
from claims.training.byte_encoder import ByteTraining, heldout_loss, train
from claims.training.text import all_bytes

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "AdamW": {"name": "adamw", "accumulate": "gradient"},
    "LAMB": {"name": "lamb", "accumulate": "gradient"},
    "Lion": {"name": "lion", "accumulate": "gradient", "weight_decay": 0.1},
    "Tiger": {"name": "tiger"},
}
_FIRST_RATE = {"AdamW": 5e-3, "LAMB": 1e-2, "Lion": 5e-4, "Tiger": 1e-2}
"""Where the search for the rate begins."""


@cache
def _loss(setting: Setting, optimizer: str, lr: float, seed: int, shape: tuple[tuple[str, int], ...]) -> float:
    fields: dict[str, Any] = dict(shape)
    task = ByteTraining(lr=lr, optimizer=OPTIMIZERS[optimizer], **fields)
    found = heldout_loss(train(task, all_bytes(setting), seed), all_bytes(setting), task.length)
    return found if math.isfinite(found) else math.inf


def final_loss(setting: Setting, optimizer: str, seed: int, **shape: int) -> float:
    """Return the held-out loss in nats after training with the rate that is best for the first seed.

    Args:
        setting: Where the text is.
        optimizer: A name of ``OPTIMIZERS``.
        seed: Weights, rows and hidden bytes.
        **shape: Fields of ``ByteTraining``.
    """
    fields = tuple(sorted(shape.items()))
    return _loss(setting, optimizer, _best_rate(setting, optimizer, fields), seed, fields)


def _best_rate(setting: Setting, optimizer: str, fields: tuple[tuple[str, int], ...]) -> float:
    """Return the rate, a power of two times the first, that half and twice of it are worse than."""

    def rate(power: int) -> float:
        return float(_FIRST_RATE[optimizer] * 2.0**power)

    def loss(power: int) -> float:
        return _loss(setting, optimizer, rate(power), 0, fields)

    power, way = 0, 1 if loss(1) < loss(0) else -1
    while loss(power + way) < loss(power):
        power += way
    return rate(power)
