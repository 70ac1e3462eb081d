"""Sign steps add noise to that of small batches: sign optimizers should gain on AdamW as batches grow."""

from __future__ import annotations

from claims.claim import Claim, Figures, Found, Lines, Setting, at
from claims.training.tuned import final_loss
from claims.verdict import Verdict, above

_ROWS = (2, 16)
_SIGNS = ("Lion", "Tiger")


def measure(seed: int, setting: Setting) -> Figures:
    """Nats by which sign optimizers end above AdamW, by rows of a step; the same steps."""
    figures: Figures = {}
    for rows in _ROWS:
        adamw = final_loss(setting, "AdamW", seed, rows=rows)
        figures |= {at(name, rows): final_loss(setting, name, seed, rows=rows) - adamw for name in _SIGNS}
    return figures


def judge(found: Found) -> Verdict:
    """How much the gap to AdamW shrinks from few rows to many, mean over both sign optimizers."""
    small, large = ([found[at(name, rows)] for name in _SIGNS] for rows in _ROWS)
    gaps = [
        (sum(few) - sum(many)) / len(_SIGNS)
        for few, many in zip(zip(*small, strict=True), zip(*large, strict=True), strict=True)
    ]
    return above(gaps, confirms=0.02, refutes=0.0)


CLAIM = Claim(
    name="sign-steps-and-noise",
    sentence="Sign steps add noise, and small batches add more, which together may be too much: below 64 rows Lion is "
    "worse than AdamW.",
    source=9473,
    measured=f"Nats by which Lion and Tiger end above AdamW, for steps of {_ROWS[0]} rows of 64 bytes and of "
    f"{_ROWS[1]}; 2 × 64, 300 steps, the rate tuned by factors of two for each optimizer and size, by the first seed.",
    refuted_if=f"the gap is as large with {_ROWS[1]} rows as with {_ROWS[0]}; confirmed if it shrinks by more than "
    "0.02 nats.",
    unit="nats above AdamW",
    shown=tuple(at(name, rows) for rows in _ROWS for name in _SIGNS),
    picture=Lines(_SIGNS, tuple(map(float, _ROWS)), "rows of a step", "loss above that of AdamW, nats"),
    seconds=160,
    measure=measure,
    judge=judge,
    trains=True,
    remark="Both sizes take the same number of steps, so the larger one reads more text.",
)
