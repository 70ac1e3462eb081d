"""Measures claims one after the other, the cheapest first; one that crashes hides no other."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from claims.claim import Claim, Setting
from claims.verdict import Verdict

Status = Verdict | Literal["not run", "crashed"]


@dataclass(frozen=True)
class Outcome:
    """What became of a claim."""

    name: str
    status: Status
    figures: dict[str, list[float]] = field(default_factory=dict)
    """By name, one value for each seed."""
    seconds: float = 0.0
    """Processor seconds of all seeds."""
    load: float = 0.0
    """Mean load of the machine in the minute before: what ran beside it."""
    message: str = ""
    """Why it crashed or was not run."""


def run_claims(
    claims: Sequence[Claim],
    setting: Setting,
    *,
    minutes: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Outcome]:
    """Yield an outcome for every claim as it is measured.

    Args:
        claims: In any order.
        setting: Where text is found.
        minutes: Time for all of them; a claim that is expected to take more than what is left is not run.
        clock: Seconds.
    """
    deadline = None if minutes is None else clock() + 60 * minutes
    for claim in sorted(claims, key=lambda claim: claim.seconds):
        left = None if deadline is None else deadline - clock()
        if left is not None and claim.seconds > left:
            yield Outcome(
                claim.name, "not run", message=f"needs about {claim.seconds:.0f} s, {max(left, 0):.0f} s left"
            )
        else:
            yield _measure(claim, setting)


def _measure(claim: Claim, setting: Setting) -> Outcome:
    load, started = os.getloadavg()[0], time.process_time()
    figures: dict[str, list[float]] = {}
    try:
        for seed in range(claim.seeds):
            for name, value in claim.measure(seed, setting).items():
                figures.setdefault(name, []).append(float(value))
        status: Status = claim.judge(figures)
        message = ""
    except Exception as error:  # noqa: BLE001  # whatever a measurement raises, the other claims are still measured
        frame = traceback.extract_tb(error.__traceback__)[-1]
        status, message = "crashed", f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
    seconds = round(time.process_time() - started, 2)
    return Outcome(claim.name, status, figures, seconds, round(load, 2), message)
