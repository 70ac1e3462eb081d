"""Recomputing layers in backward: how much larger a batch fits, and what it costs."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from claims.claim import Bars, Claim, Figures, Found, Setting
from claims.training.encoders import masked_lm
from claims.verdict import Verdict, above, all_of, within
from kexue_train.model import RoFormerV2ForMaskedLM
from kexue_train.model.recompute import enable_recompute

_LAYERS, _HIDDEN, _ROUNDS = 12, 768, 3
_SHORT, _LONG = 16, 128


def measure(seed: int, _: Setting) -> Figures:
    """Bytes that one row needs and seconds of forward and backward, in turn without and with recomputation."""
    torch.manual_seed(seed)
    return {"batch": rows_that_fit(), "time": time_of_layers()}


def rows_that_fit() -> float:
    """Return how many times as many rows fit; bytes grow with the tokens, so a short row will do."""
    tokens = torch.randint(5, 12_000, (1, _SHORT))
    kept = {is_recomputed: bytes_kept(_encoder(_LAYERS, 12_000, is_recomputed), tokens) for is_recomputed in (0, 1)}
    one_layer = (kept[0] - kept[1]) / _LAYERS  # is there again while backward is in it
    return kept[0] / (kept[1] + one_layer)


def time_of_layers() -> float:
    """Return the ratio of times, of layers whose word head is too small to count; they take turns."""
    models, seconds = [_encoder(2, 500, is_recomputed) for is_recomputed in (0, 1)], [0.0, 0.0]
    tokens = torch.randint(5, 500, (1, _LONG))
    for round_ in range(_ROUNDS + 1):
        for number, model in enumerate(models):
            model.zero_grad(set_to_none=True)
            started = time.process_time()
            model(tokens, labels=tokens).loss.backward()
            seconds[number] += time.process_time() - started if round_ else 0.0  # the first round warms up
    return seconds[1] / seconds[0]


def _encoder(layers: int, vocab: int, is_recomputed: int) -> RoFormerV2ForMaskedLM:
    model = masked_lm(layers=layers, hidden=_HIDDEN, vocab=vocab)
    if is_recomputed:
        enable_recompute(model.roformer, "full")
    model.train()
    return model


def bytes_kept(model: RoFormerV2ForMaskedLM, tokens: Tensor) -> int:
    """Return what lies in memory for backward once a forward and a backward have begun, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def remember(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        loss = model(tokens, labels=tokens).loss
    total = sum(kept.values())
    loss.backward()
    return total


def judge(found: Found) -> Verdict:
    """About three times the rows, about a quarter more time."""
    return all_of(above(found["batch"], confirms=2.5, refutes=2.0), within(found["time"], 1.05, 1.45))


CLAIM = Claim(
    name="recomputation",
    sentence="Recomputing every layer in backward lets a batch about three times as large into the same memory "
    "(BERT base), for about 25 % more time per sample.",
    source=7367,
    measured="Base size (12 × 768, 12,000 words), fp32, no dropout: bytes kept for backward per row, with one "
    "layer's on top where it is recomputed, weights left out; and processor seconds of forward and backward of two "
    "such layers on a row of 128 tokens, both kinds in turn.",
    refuted_if="less than twice the rows fit, or the time leaves 1.05 to 1.45; confirmed from 2.5 times the rows on.",
    unit="times",
    shown=("batch", "time"),
    picture=Bars(("batch", "time"), "with recomputation / without", mark=1.0),
    seconds=15,
    measure=measure,
    judge=judge,
    remark="The gain in rows is larger than published, as a layer here keeps only its input; the post wraps "
    "attention, feed-forward layers and norms one by one.",
)
