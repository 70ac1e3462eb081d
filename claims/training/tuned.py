"""Optimizers beside each other: the rate of each tuned on the first seed, then the same seeds for all."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
RATES: dict[str, tuple[float, ...]] = {
    "AdamW": (2.5e-3, 5e-3, 1e-2),
    "LAMB": (5e-3, 1e-2, 2e-2),
    "Lion": (2.5e-4, 5e-4, 1e-3),
    "Tiger": (5e-3, 1e-2, 2e-2),
}


@cache
def _loss(setting: Setting, optimizer: str, lr: float, seed: int, shape: tuple[tuple[str, int], ...]) -> float:
    fields: dict[str, Any] = dict(shape)
    task = ByteTraining(lr=lr, optimizer=OPTIMIZERS[optimizer], **fields)
    found = heldout_loss(train(task, all_bytes(setting), seed), all_bytes(setting), task.length)
    return found if math.isfinite(found) else math.inf


def final_loss(setting: Setting, optimizer: str, seed: int, *, rates: Sequence[float] = (), **shape: int) -> float:
    """Return the held-out loss in nats after training with the rate that is best for the first seed.

    Args:
        setting: Where the text is.
        optimizer: A name of ``OPTIMIZERS``.
        seed: Weights, rows and hidden bytes.
        rates: Those that are tried; by default ``RATES``.
        **shape: Fields of ``ByteTraining``.
    """
    fields = tuple(sorted(shape.items()))
    best = min(rates or RATES[optimizer], key=lambda lr: _loss(setting, optimizer, lr, 0, fields))
    return _loss(setting, optimizer, best, seed, fields)
