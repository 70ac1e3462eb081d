"""The whole objective on the CPU and on the device, and the word loss against fp64."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads

from benchmarks.gpu.check import Bench, Check, Figures, require
from benchmarks.gpu.made_up import batches, loss_and_gradients, make_objective, model_config, worst_error
from kexue_train.model import linear_cross_entropy as word_loss

_OBJECTIVE_TOLERANCE = {"fp32": 2e-4, "bf16": 6e-2}
"""Of the norm of a gradient, the worst of all tensors."""
_WORD_TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}


def check_objective(bench: Bench) -> Figures:
    """Loss and all gradients: fp32 on the CPU, fp32 on the device, bf16 on the device; from the same weights."""
    model, rows = model_config(bench, dropout=False), 2
    host = replace(bench, device=torch.device("cpu"))
    expected = loss_and_gradients(make_objective(host, model, rows=rows, autocast=None), batches(host, 1, rows)[0])
    figures: Figures = {"fp32_cpu_loss": float(expected[0])}
    for name, autocast in (("fp32", None), ("bf16", torch.bfloat16)):
        objective = make_objective(bench, model, rows=rows, autocast=autocast)
        loss, gradients = loss_and_gradients(objective, batches(bench, 1, rows)[0])
        error = worst_error([loss, *gradients], [expected[0], *expected[1]])
        figures[name] = {"loss": float(loss), "error": error}
        require(
            error <= _OBJECTIVE_TOLERANCE[name],
            f"{name}: a gradient is off by {error:.2g} of its norm; allowed {_OBJECTIVE_TOLERANCE[name]}",
            figures,
        )
    return figures


def check_word_loss(bench: Bench) -> Figures:
    """Loss and both gradients of the projection onto the vocabulary, at a number of rows that no chunk divides."""
    rows, width, words = (3001, 768, 12_032) if not bench.is_stand_in else (1301, 16, 96)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(rows, width, generator=generator), torch.randn(words, width, generator=generator)
    weight *= width**-0.5
    labels = torch.randint(0, words, (rows,), generator=generator)
    labels[::7] = -100
    reference = [x.to(bench.device, torch.float64).requires_grad_() for x in (hidden, weight)]
    labels = labels.to(bench.device)
    total = F.cross_entropy(reference[0] @ reference[1].T, labels, reduction="sum")
    expected = [total, *torch.autograd.grad(total, reference)]
    figures: Figures = {}
    for name, enabled in (("fp32", False), ("bf16", True)):
        inputs = [x.to(bench.device).requires_grad_() for x in (hidden, weight)]
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=enabled):
            scores = word_loss.linear_cross_entropy(*inputs, labels)
        error = worst_error([scores.loss, *torch.autograd.grad(scores.loss, inputs)], expected)
        figures[name] = {"error": error, "labels": int(scores.num_labels)}
        require(error <= _WORD_TOLERANCE[name], f"{name}: the word loss is off by {error:.2g}", figures)
        require(figures[name]["labels"] == int((labels != -100).sum()), f"{name}: labels are miscounted", figures)
    return figures


CHECKS = (
    Check(name="objective", minutes=0.4, run=check_objective),
    Check(name="word loss", minutes=0.2, run=check_word_loss),
)
