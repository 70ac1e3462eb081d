"""Tiger beside AdamW, LAMB and Lion, the rate of each tuned."""

from __future__ import annotations

from claims.claim import Bars, Claim, Figures, Found, Setting
from claims.training.tuned import OPTIMIZERS, final_loss
from claims.verdict import Verdict, above, all_of, within


def measure(seed: int, setting: Setting) -> Figures:
    """Held-out losses after the same steps on the same rows."""
    return {name: final_loss(setting, name, seed) for name in OPTIMIZERS}


def judge(found: Found) -> Verdict:
    """Nats by which Tiger ends below AdamW, and by which LAMB differs from it."""
    gain = [adamw - tiger for adamw, tiger in zip(found["AdamW"], found["Tiger"], strict=True)]
    apart = [lamb - adamw for adamw, lamb in zip(found["AdamW"], found["LAMB"], strict=True)]
    return all_of(above(gain, confirms=-0.01, refutes=-0.02), within(apart, -0.05, 0.05))


CLAIM = Claim(
    name="tiger-and-adamw",
    sentence="Tiger is at least as good as AdamW, and AdamW about as good as LAMB.",
    source=9512,
    measured="Loss in nats over hidden bytes of a 2 × 64 encoder after 300 steps of 16 rows of 64, the rate of each "
    "optimizer tuned by factors of two, by the first seed.",
    refuted_if="Tiger ends more than 0.02 nats above AdamW, or LAMB more than 0.05 nats away from it.",
    unit="nats",
    shown=tuple(OPTIMIZERS),
    picture=Bars(tuple(OPTIMIZERS), "loss over hidden bytes, nats"),
    seconds=150,
    measure=measure,
    judge=judge,
    trains=True,
    remark="A training of seconds; benchmarks/RESULTS.md has longer ones.",
)
