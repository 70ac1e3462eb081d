"""Post-norm and pre-norm end pretraining alike, but post-norm fine-tunes better."""

from __future__ import annotations

from functools import cache
from typing import Any

from claims.claim import Bars, Claim, Figures, Found, Setting
from claims.training.byte_encoder import ByteTraining, heldout_loss, train
from claims.training.exchanged_words import finetuned_accuracy
from claims.training.text import all_bytes
from claims.verdict import Verdict, above
from kexue_train.model import RoFormerV2ForMaskedLM

_LENGTH = 128
_PRETRAINING: dict[str, Any] = {"steps": 400, "length": _LENGTH, "layers": 6}
_FINETUNING: dict[str, Any] = {"steps": 300, "rows": 16, "length": _LENGTH}
_RATES = (1e-3, 2e-3, 4e-3)
_FINETUNING_RATES = (5e-4, 1e-3, 2e-3)
_KINDS = ("post", "pre")


def measure(seed: int, setting: Setting) -> Figures:
    """Pretraining losses in nats and accuracies in percent."""
    figures: Figures = {}
    for kind in _KINDS:
        lr, _ = _best_rates(setting, kind)
        figures[f"{kind}-norm, pretrained, nats"] = _loss(_pretrain(setting, kind, lr, seed), setting)
        figures[f"{kind}-norm, fine-tuned"] = _accuracy(setting, kind, *_best_rates(setting, kind), seed)
    return figures


@cache
def _best_rates(setting: Setting, kind: str) -> tuple[float, float]:
    """By the first seed: the rate with the lowest loss, then the one with which that encoder fine-tunes best."""
    lr = min(_RATES, key=lambda lr: _loss(_pretrain(setting, kind, lr, 0), setting))
    return lr, max(_FINETUNING_RATES, key=lambda rate: _accuracy(setting, kind, lr, rate, 0))


def _pretrain(setting: Setting, kind: str, lr: float, seed: int) -> RoFormerV2ForMaskedLM:
    return train(ByteTraining(lr=lr, model={"norm_placement": kind}, **_PRETRAINING), all_bytes(setting), seed)


def _loss(encoder: RoFormerV2ForMaskedLM, setting: Setting) -> float:
    return heldout_loss(encoder, all_bytes(setting), _LENGTH)


@cache
def _accuracy(setting: Setting, kind: str, lr: float, finetuning_lr: float, seed: int) -> float:
    encoder = _pretrain(setting, kind, lr, seed)
    return 100 * finetuned_accuracy(encoder, all_bytes(setting), lr=finetuning_lr, seed=seed, **_FINETUNING)


def judge(found: Found) -> Verdict:
    """By how many points post-norm is better after fine-tuning, seed by seed."""
    pairs = zip(found["post-norm, fine-tuned"], found["pre-norm, fine-tuned"], strict=True)
    return above([post - pre for post, pre in pairs], confirms=1.0, refutes=0.0)


CLAIM = Claim(
    name="post-norm-finetuned",
    sentence="Post-norm and pre-norm end pretraining at about the same loss, but post-norm is clearly better after "
    "fine-tuning.",
    source=9009,
    measured="Encoders of 6 × 64 that differ in the place of the norms alone, pretrained for 400 steps on 16 rows of "
    "128 bytes with AdamW, then fine-tuned for 300 steps to tell whether two neighbouring words of a row have "
    "changed places (512 held-out rows); both rates are the best of three, by the first seed.",
    refuted_if="post-norm is not better after fine-tuning; confirmed if it is by more than one point.",
    unit="% right (chance: about 50)",
    shown=(
        "post-norm, fine-tuned",
        "pre-norm, fine-tuned",
        "post-norm, pretrained, nats",
        "pre-norm, pretrained, nats",
    ),
    picture=Bars(("post-norm, fine-tuned", "pre-norm, fine-tuned"), "right, %", mark=50.0),
    seconds=1300,
    measure=measure,
    judge=judge,
    trains=True,
    remark="The post speaks of pretrainings that last weeks and of models with many more layers.",
)
