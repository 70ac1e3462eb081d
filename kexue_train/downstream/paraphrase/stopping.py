"""Decoding that stops: after some tokens the probability of the end rises towards 1, whatever the model says.

Truncated sampling, greedy and beam search need not end, although every text of the model does: the end may never be
among the tokens that are kept, or never be the likeliest. Two remedies: the end belongs to every truncated set
(``sampling.py``), and its probability has a lower bound that rises to 1 (here).

Source: https://kexue.fm/archives/7500, after https://arxiv.org/abs/2002.02492. There the bound is trained into the
model and holds from the first token. Here it is applied while decoding, so that any model has it, and only after
``after`` tokens, so that shorter texts keep the probabilities of the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kexue_train.downstream.paraphrase.written import LogProbs, NextTokens
from kexue_train.downstream.sequences import Ids
from kexue_train.foundation.errors import ConfigError

EPSILON = 0.1
"""Each token beyond ``after`` multiplies the probability of going on by 1 - EPSILON once more."""
_UNFINISHED = 1e-6
"""So improbable is a sample that has not ended within its room."""


@dataclass(frozen=True)
class Stopping:
    """With t tokens written, the end has at least the probability 1 - (1 - EPSILON)^(t - after)."""

    limit: int
    """Tokens at most, the end among them."""
    after: int
    """Tokens up to which the model alone decides."""

    @classmethod
    def of_beams(cls, limit: int, width: int) -> Stopping:
        """Return the rule under which a beam search of ``width`` has ended in every beam within ``limit`` tokens.

        Once the end is likelier than all other tokens together, the best unfinished beam yields a finished one at every
        step, and no unfinished beam can ever pass that one. So ``width`` further steps finish all.

        Raises:
            ConfigError: If there is too little room for that.
        """
        to_majority = math.floor(math.log(2) / -math.log1p(-EPSILON)) + 1
        return cls._with_room(limit, to_majority + width, f"{width} beams")

    @classmethod
    def of_samples(cls, limit: int) -> Stopping:
        """Return the rule under which one sample in a million has not ended within ``limit`` tokens.

        Raises:
            ConfigError: If there is too little room for that.
        """
        exponents = math.log(_UNFINISHED) / math.log1p(-EPSILON)  # 1 + 2 + ... + steps has to reach it
        steps = math.ceil((math.sqrt(1 + 8 * exponents) - 1) / 2)
        return cls._with_room(limit, steps + 1, "samples")

    @classmethod
    def _with_room(cls, limit: int, needed: int, what: str) -> Stopping:
        if limit <= needed:
            raise ConfigError(
                f"max_tokens={limit} is too few for {what}, which need {needed} tokens alone to come to an end; give "
                f"--max-tokens {needed + 1} or more"
            )
        return cls(limit, limit - needed)

    def bound(self, next_tokens: NextTokens, end: int) -> NextTokens:
        """Return ``next_tokens`` with the rising probability of the token ``end``."""

        def bounded(written: Ids) -> LogProbs:
            return raise_end(next_tokens(written), end, max(0, written.shape[1] - self.after))

        return bounded


def raise_end(log_probs: LogProbs, end: int, steps: int) -> LogProbs:
    """Return log-probabilities (n, V) in which every token but ``end`` has (1 - EPSILON)^``steps`` of its probability.

    ``end`` receives the rest, so they still sum to 1. The order of the other tokens stays.
    """
    if steps == 0:
        return log_probs
    going_on = steps * math.log1p(-EPSILON)
    raised = log_probs + going_on
    raised[:, end] = np.logaddexp(raised[:, end], np.log1p(-np.exp(going_on)))
    return raised
