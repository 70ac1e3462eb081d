"""Scores on the held-out rows, which no training step ever reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from kexue_train.train.distributed import sum_over_ranks
from kexue_train.train.objective import LossTerms, PretrainingObjective
from kexue_train.train.tensors import Tensors, to_device


@torch.no_grad()
def validate(objective: PretrainingObjective, batches: Iterable[Tensors], device: torch.device) -> dict[str, float]:
    """Means over the held-out rows of all ranks, without dropout; masks are fixed, so values compare over time."""
    objective.eval()
    sums = torch.zeros(len(LossTerms._fields), device=device)
    for batch in batches:
        _, terms = objective(to_device(batch, device))
        sums += torch.stack(terms)
    return means(sum_over_ranks(sums).tolist())


def total_loss(scores: dict[str, float], nsp_weight: float) -> float | None:
    """The loss of both tasks in nats; None if no word was predicted."""
    if "mlm_loss" not in scores:
        return None
    return scores["mlm_loss"] + nsp_weight * scores.get("nsp_loss", 0.0)


def means(sums: Sequence[float]) -> dict[str, float]:
    """Means and counts of summed ``LossTerms``; a task without a single example is left out."""
    terms = dict(zip(LossTerms._fields, sums, strict=True))
    scores: dict[str, float] = {}
    for task, counted in (("mlm", "predictions"), ("nsp", "pairs")):
        count = terms[f"{task}_count"]
        if count:
            scores |= {
                f"{task}_loss": terms[f"{task}_loss"] / count,
                f"{task}_accuracy": terms[f"{task}_correct"] / count,
            }
            scores[counted] = int(count)
    return scores
