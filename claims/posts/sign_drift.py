"""Under sign steps the row of a token that occurred once runs off to ±1/λ."""

from __future__ import annotations

from claims.claim import Bars, Claim, Figures, Found, Setting
from claims.training.two_tokens import NONE, largest_of_rare_row, sum_of_rates_to_half
from claims.verdict import Verdict, all_of, within


def measure(seed: int, _: Setting) -> Figures:
    """How far the rare row gets, and how long growth takes."""
    return {"rare row": largest_of_rare_row(NONE, seed), "Σα to half of 1/λ": sum_of_rates_to_half(1e-2)}


def judge(found: Found) -> Verdict:
    """The limit, and logistic growth to half of it: ln(99.99 / 0.01) − ln(1) = 9.21."""
    return all_of(within(found["rare row"], 99.0, 100.1), within(found["Σα to half of 1/λ"], 8.9, 9.5))


CLAIM = Claim(
    name="sign-drift",
    sentence="Under sign steps one occurrence of a rare token drives its row to ±1/λ, since the sign of a momentum "
    "that dies out keeps its full size; growth is logistic in the sum of the learning rates.",
    source=9736,
    measured="Tiger with λ = 0.01 on a table of two tokens with an untied head, one of them seen in the first of "
    "2,000 steps only; and the sum of learning rates that takes a row of one sign from 0.01 to 50.",
    refuted_if="the rare row stays below 99 or exceeds 100.1, or the growth to 50 takes a sum outside of 8.9 to 9.5 "
    "(the logistic curve: 9.21).",
    unit="",
    shown=("rare row", "Σα to half of 1/λ"),
    picture=Bars(("rare row", "Σα to half of 1/λ"), "largest element of the row; sum of learning rates", mark=100.0),
    seconds=6,
    measure=measure,
    judge=judge,
)
