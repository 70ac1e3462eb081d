"""A labelled task made of any text: whether two neighbouring words of a row have changed places."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads
from torch import Tensor, nn

from claims.training.byte_encoder import HELDOUT_BYTES
from claims.training.text import Bytes
from kexue_train.model import RoFormerV2ForMaskedLM

_SPACE = 32
_TESTED_ROWS, _TEST_SEED = 512, 77


def finetuned_accuracy(
    encoder: RoFormerV2ForMaskedLM, text: Bytes, *, length: int, lr: float, steps: int, rows: int, seed: int
) -> float:
    """Train all weights and a new head on the mean vector, by AdamW; return the accuracy on held-out rows.

    Args:
        encoder: Pretrained on bytes; changed in place.
        text: The end of it is for the test.
        length: Bytes of a row.
        lr: Highest learning rate; it rises over a tenth of the steps and falls to 0.
        steps: How many.
        rows: Of a step; half of them, on average, with exchanged words.
        seed: Of the head and the rows.
    """
    torch.manual_seed(seed)
    head = nn.Linear(encoder.config.hidden_size, 2)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=lr, weight_decay=0.01)
    ramp = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(10 * (step + 1) / steps, (steps - step) / (0.9 * steps))
    )
    generator = np.random.default_rng([seed, 2])
    encoder.train()
    for _ in range(steps):
        inputs, labels = _rows(text[:-HELDOUT_BYTES], length, rows, generator)
        loss: Tensor = F.cross_entropy(_logits(encoder, head, inputs), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        ramp.step()
    encoder.eval()
    with torch.no_grad():
        inputs, labels = _rows(text[-HELDOUT_BYTES:], length, _TESTED_ROWS, np.random.default_rng(_TEST_SEED))
        return float((_logits(encoder, head, inputs).argmax(-1) == labels).float().mean())


def exchange_words(row: npt.NDArray[np.uint8], generator: np.random.Generator) -> bool:
    """Let two neighbouring words in the middle of ``row`` change places, in place; False if there are no two."""
    spaces = np.flatnonzero(row == _SPACE)
    if len(spaces) < 3:
        return False
    first = int(generator.integers(len(spaces) - 2))
    start, middle, end = (int(place) for place in spaces[first : first + 3])
    if bytes(row[start:middle]) == bytes(row[middle:end]):
        return False
    row[start:end] = np.concatenate((row[middle:end], row[start:middle]))
    return True


def _rows(text: Bytes, length: int, rows: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    starts = generator.integers(0, len(text) - length, rows)
    found = text[starts[:, None] + np.arange(length)]
    wanted = generator.random(rows) < 0.5
    labels = [int(want and exchange_words(row, generator)) for want, row in zip(wanted, found, strict=True)]
    return torch.from_numpy(found.astype(np.int64)), torch.tensor(labels)


def _logits(encoder: RoFormerV2ForMaskedLM, head: nn.Linear, inputs: Tensor) -> Tensor:
    logits: Tensor = head(encoder.roformer(inputs).last_hidden_state.mean(1))
    return logits
