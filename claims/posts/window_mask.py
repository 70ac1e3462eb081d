"""A window mask of the length of training lets a rotary encoder read longer texts."""

from __future__ import annotations

from claims.claim import Claim, Figures, Found, Lines, Setting, at
from claims.training.length_models import LENGTHS, TRAINED, losses
from claims.verdict import Verdict, above, all_of, below


def measure(seed: int, setting: Setting) -> Figures:
    """Held-out losses by length, read plainly and with the window."""
    ways = {"plain": losses(setting, seed), "window of 64": losses(setting, seed, window=TRAINED)}
    return {at(way, length): loss for way, found in ways.items() for length, loss in found.items()}


def judge(found: Found) -> Verdict:
    """Plain reading gets worse with the length, reading with the window does not."""
    fall, gain = [], []
    for plain, window, start in zip(
        found[at("plain", LENGTHS[-1])],
        found[at("window of 64", LENGTHS[-1])],
        found[at("plain", TRAINED)],
        strict=True,
    ):
        fall.append(window - start)
        gain.append(plain - window)
    return all_of(above(gain, confirms=0.05, refutes=0.0), below(fall, confirms=0.03, refutes=0.1))


CLAIM = Claim(
    name="window-mask",
    sentence="A mask that lets every token see only as many tokens as in training cures reading beyond that length, "
    "without any further training.",
    source=9431,
    measured=f"An encoder (2 × 64, AdamW, 400 steps of 16 rows) that learned rows of {TRAINED} bytes of the text "
    "reads rows of up to 1,024 bytes: loss in nats over hidden bytes, plainly and with the window.",
    refuted_if="at 1,024 bytes the window is no better than plain reading, or its loss is 0.1 nats above that at "
    "64; confirmed if it gains more than 0.05 and loses less than 0.03.",
    unit="nats",
    shown=(at("plain", 64), at("plain", 1024), at("window of 64", 1024)),
    picture=Lines(
        ("plain", "window of 64"), tuple(map(float, LENGTHS)), "bytes of a row", "loss over hidden bytes, nats"
    ),
    seconds=70,
    measure=measure,
    judge=judge,
    trains=True,
    remark="Bytes need what is near. A text whose words depend on far ones loses what the window hides.",
)
