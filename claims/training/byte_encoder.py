"""A small encoder that fills in hidden bytes: the cheapest training that shows how optimizers and lengths differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads
from torch import Tensor

from claims.training.encoders import masked_lm
from claims.training.text import Bytes
from kexue_train.model import RoFormerV2ForMaskedLM
from kexue_train.optim.build import build_optimizer, set_learning_rate
from kexue_train.optim.config import OptimizerConfig
from kexue_train.optim.schedule import Knots

_MASK, _VOCAB, _IGNORED, _HIDDEN_SHARE = 256, 257, -100, 0.15
HELDOUT_BYTES = 65_536
"""At the end of the text; no training reads them."""


@dataclass(frozen=True)
class ByteTraining:
    """One training."""

    lr: float
    steps: int = 300
    """Optimizer steps."""
    rows: int = 16
    """Of a micro-batch."""
    accumulation_steps: int = 1
    length: int = 64
    """Bytes of a row."""
    layers: int = 2
    hidden: int = 64
    optimizer: dict[str, Any] = field(default_factory=lambda: {"name": "adamw", "accumulate": "gradient"})
    """Of the ``optimizer`` section, without the learning rate."""
    model: dict[str, Any] = field(default_factory=dict)
    """Options of the encoder."""


def train(task: ByteTraining, text: Bytes, seed: int) -> RoFormerV2ForMaskedLM:
    """Return a model that has learned ``text``; the seed decides weights, rows and hidden bytes."""
    torch.manual_seed(seed)
    model = masked_lm(layers=task.layers, hidden=task.hidden, vocab=_VOCAB, max_position_embeddings=4096, **task.model)
    schedule = Knots({max(1, task.steps // 10): 1.0, task.steps: 0.05})
    settings = OptimizerConfig(lr=task.lr, schedule=schedule, **task.optimizer)
    optimizer = build_optimizer(settings, model.train(), accumulation_steps=task.accumulation_steps, seed=seed)
    batches = _micro_batches(task, text[:-HELDOUT_BYTES], seed)
    for step in range(1, task.steps + 1):
        set_learning_rate(optimizer, schedule.multiplier(step))
        for _ in range(task.accumulation_steps):
            inputs, labels = next(batches)
            model(inputs, labels=labels).loss.backward()
            optimizer.step()
    model.eval()
    return model


@torch.no_grad()
def heldout_loss(model: RoFormerV2ForMaskedLM, text: Bytes, length: int, *, size: int = HELDOUT_BYTES) -> float:
    """Return the mean loss in nats over hidden bytes of the held-out end of the text, in rows of ``length``."""
    rows = text[len(text) - HELDOUT_BYTES :][:size].reshape(-1, length).astype(np.int64)
    total = count = 0.0
    generator = np.random.default_rng(0)
    for some in np.array_split(rows, max(1, rows.size // 8192)):
        inputs, labels = _hide(some, generator)
        logits, wanted = model(inputs).logits[labels != _IGNORED], labels[labels != _IGNORED]
        total += F.cross_entropy(logits, wanted, reduction="sum").item()
        count += len(wanted)
    return total / count


def _micro_batches(task: ByteTraining, text: Bytes, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = np.random.default_rng([seed, 1])
    while True:
        starts = generator.integers(0, len(text) - task.length, task.rows)
        yield _hide(text[starts[:, None] + np.arange(task.length)].astype(np.int64), generator)


def _hide(ids: npt.NDArray[np.int64], generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    is_hidden = generator.random(ids.shape) < _HIDDEN_SHARE
    return torch.from_numpy(np.where(is_hidden, _MASK, ids)), torch.from_numpy(np.where(is_hidden, ids, _IGNORED))
