"""Fewer updates, each of more rows, from the same text."""

from __future__ import annotations

from claims.claim import Bars, Claim, Figures, Found, Setting
from claims.training.tuned import final_loss
from claims.verdict import Verdict, above

_MICRO_STEPS, _ROWS, _PARTS = 800, 2, (1, 4)


def measure(seed: int, setting: Setting) -> Figures:
    """Held-out losses after the same micro-batches, with an update after every one and after every fourth."""
    return {
        f"every {parts}": final_loss(
            setting, "AdamW", seed, rows=_ROWS, steps=_MICRO_STEPS // parts, accumulation_steps=parts
        )
        for parts in _PARTS
    }


def judge(found: Found) -> Verdict:
    """Nats that rarer updates gain over one after every micro-batch."""
    gain = [each - rarer for each, rarer in zip(found["every 1"], found["every 4"], strict=True)]
    return above(gain, confirms=0.02, refutes=0.0)


CLAIM = Claim(
    name="fewer-updates",
    sentence="With small micro-batches fewer updates are better: the same text, with an update after every k-th "
    "micro-batch only, ends at a lower loss.",
    source=8634,
    measured=f"AdamW, 2 × 64, {_MICRO_STEPS} micro-batches of {_ROWS} rows of 64 bytes, an update after every one, "
    "or every fourth; the rate of each tuned by factors of two, by the first seed.",
    refuted_if="updates after every fourth micro-batch end no lower than after every one; confirmed if they gain "
    "more than 0.02 nats.",
    unit="nats",
    shown=tuple(f"every {parts}" for parts in _PARTS),
    picture=Bars(tuple(f"every {parts}" for parts in _PARTS), "loss over hidden bytes, nats"),
    seconds=150,
    measure=measure,
    judge=judge,
    trains=True,
    remark="The post saw it where single examples make a batch, and in fine-tuning.",
)
