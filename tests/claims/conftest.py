"""A claim made up for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from claims.claim import Bars, Claim, Figures, Setting
from claims.verdict import above


def measure(seed: int, _: Setting) -> Figures:
    return {"gain": 2.0 + 0.01 * seed}


@pytest.fixture
def make_claim() -> Callable[..., Claim]:
    """Builds a claim whose gain is 2.00, 2.01, 2.02; options replace its fields."""

    def make(**options: Any) -> Claim:
        fields: dict[str, Any] = {
            "name": "made-up", "sentence": "It gains.", "source": 1, "measured": "a number", "refuted_if": "below 1",
            "unit": "nats", "shown": ("gain",), "picture": Bars(("gain",), "gain"), "seconds": 1.0, "measure": measure,
            "judge": lambda found: above(found["gain"], confirms=1.0, refutes=1.0),
        }  # fmt: skip
        return Claim(**fields | options)

    return make
