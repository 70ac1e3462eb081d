"""Beam search: the most probable texts, as far as ``width`` of them at a time can tell."""

from __future__ import annotations

import numpy as np

from kexue_train.downstream.paraphrase.sampling import extend
from kexue_train.downstream.paraphrase.written import NextTokens, Written, as_array


def beam_search(next_tokens: NextTokens, width: int, limit: int, *, end: int) -> list[Written]:
    """Return at most ``width`` texts of at most ``limit`` tokens, the end among them, the most probable first.

    Finished texts keep their place among the ``width`` best. Of equal ones a finished text comes first, then the one
    that was better before, then the token with the lower number. The search ends when all are finished.
    """
    beams = [Written((), 0.0, False)]
    for _ in range(limit):
        finished = [beam for beam in beams if beam.is_complete]
        unfinished = [beam for beam in beams if not beam.is_complete]
        if not unfinished:
            break
        log_probs = next_tokens(as_array(unfinished))
        scores = np.array([beam.log_prob for beam in unfinished])[:, None] + log_probs
        goes_on = np.broadcast_to(np.arange(scores.shape[1]) != end, scores.shape)
        best = np.lexsort((goes_on.ravel(), -scores.ravel()))[:width]
        places = [np.unravel_index(place, scores.shape) for place in best if scores.flat[place] > -np.inf]
        longer = [extend(unfinished[row], int(token), float(log_probs[row, token]), end) for row, token in places]
        beams = sorted([*finished, *longer], key=lambda beam: (-beam.log_prob, not beam.is_complete))[:width]
    return beams
