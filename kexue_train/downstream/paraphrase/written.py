"""What is written token by token, and the function that says what may come next."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kexue_train.downstream.sequences import Ids

LogProbs = npt.NDArray[np.float64]
NextTokens = Callable[[Ids], LogProbs]
"""Token sequences written so far, (n, t) int64 -> log-probabilities of the next token of each, (n, V), normalised.

-inf marks tokens that are never written.
"""


class Written(NamedTuple):
    """One sequence."""

    ids: tuple[int, ...]
    """Tokens, without the end."""
    log_prob: float
    """Natural logarithm of its probability, the end included if it has one."""
    is_complete: bool
    """Whether it ended by itself, not because there was no more room."""


def as_array(sequences: list[Written]) -> Ids:
    """Return the tokens of sequences of equal length as (n, t)."""
    return np.array([entry.ids for entry in sequences], np.int64).reshape(len(sequences), -1)
