"""Attention scores scaled by the logarithm of the length help on longer texts, if they are there in training."""

from __future__ import annotations

from claims.claim import Claim, Figures, Found, Lines, Setting, at
from claims.training.length_models import LENGTHS, LOG_N, TRAINED, losses
from claims.verdict import Verdict, above

_WAYS = ("plain", "trained with log n", "log n when reading only", "log n / log 64 when reading only")


def measure(seed: int, setting: Setting) -> Figures:
    """Held-out losses by length of four ways to use the scale."""
    found = (
        losses(setting, seed),
        losses(setting, seed, trained_with_log_n=True, log_n=LOG_N),
        losses(setting, seed, log_n=LOG_N),
        losses(setting, seed, log_n=TRAINED),
    )
    return {
        at(way, length): loss for way, by_length in zip(_WAYS, found, strict=True) for length, loss in by_length.items()
    }


def judge(found: Found) -> Verdict:
    """How much less the loss rises from the length of training to four times of it."""

    def rise(way: str) -> list[float]:
        return [long - short for long, short in zip(found[at(way, 256)], found[at(way, TRAINED)], strict=True)]

    return above([a - b for a, b in zip(rise("plain"), rise(_WAYS[1]), strict=True)], confirms=0.02, refutes=0.0)


CLAIM = Claim(
    name="log-n",
    sentence="Scores scaled by log n / log 512 keep the entropy of attention as rows get longer, so a model trained "
    "with them loses less beyond its length of training.",
    source=8823,
    measured=f"As in window-mask: rows of up to 1,024 bytes, read by an encoder trained on {TRAINED} bytes plainly, "
    "by one trained with the scale, and by the plain one with the scale switched on when reading only (1 at 512, or "
    "1 at 64).",
    refuted_if="from 64 to 256 bytes the loss of the model trained with the scale rises as much as that of the "
    "plain one; confirmed if it rises 0.02 nats less.",
    unit="nats",
    shown=tuple(at(way, 256) for way in _WAYS),
    picture=Lines(_WAYS, tuple(map(float, LENGTHS)), "bytes of a row", "loss over hidden bytes, nats"),
    seconds=80,
    measure=measure,
    judge=judge,
    trains=True,
    remark="The claim is about a model that trains with the scale. What the scale does to one that does not is in "
    "the figures.",
)
