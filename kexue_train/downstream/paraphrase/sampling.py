"""Random texts from truncated probabilities; the end is in every truncated set."""

from __future__ import annotations

import numpy as np

from kexue_train.downstream.paraphrase.written import LogProbs, NextTokens, Written, as_array
from kexue_train.foundation.counter_rng import Purpose, generator


def truncate(log_probs: LogProbs, end: int, *, top_k: int | None = None, top_p: float | None = None) -> LogProbs:
    """Return the log-probabilities (n, V) of the likeliest tokens and of ``end``, normalised anew; -inf elsewhere.

    Args:
        log_probs: (n, V), normalised.
        end: The token that is always kept; without it a truncated text need not end.
        top_k: Keep so many tokens; of equal ones those with the lower numbers.
        top_p: Keep the fewest of the likeliest tokens that have this probability together (nucleus).

    Source: https://kexue.fm/archives/7500.
    """
    order = np.argsort(-log_probs, axis=1, kind="stable")
    probs = np.exp(np.take_along_axis(log_probs, order, 1))
    is_kept = np.ones_like(probs, dtype=bool)
    if top_k is not None:
        is_kept[:, top_k:] = False
    if top_p is not None:
        is_kept &= np.cumsum(probs, 1) - probs < top_p
    mask = np.empty_like(is_kept)
    np.put_along_axis(mask, order, is_kept, 1)
    mask[:, end] = True
    kept = np.where(mask, log_probs, -np.inf)
    return kept - np.logaddexp.reduce(kept, axis=1, keepdims=True)


def draw(log_probs: LogProbs, uniforms: np.ndarray) -> np.ndarray:
    """Return the token of each row (n, V) at which its cumulative probability passes the number in [0, 1): (n,)."""
    cumulative = np.exp(log_probs).cumsum(1)
    tokens: np.ndarray = np.argmax(cumulative > uniforms[:, None] * cumulative[:, -1:], axis=1)
    return tokens


def sample(
    next_tokens: NextTokens,
    number: int,
    limit: int,
    *,
    end: int,
    seed: int,
    top_k: int | None = None,
    top_p: float | None = None,
) -> list[Written]:
    """Draw ``number`` texts of at most ``limit`` tokens, the end among them.

    The random numbers of text i depend on (seed, i) alone. ``log_prob`` is that of ``next_tokens``, not of the
    truncated probabilities.
    """
    uniforms = np.array([generator(seed, Purpose.PARAPHRASE, text).random(limit) for text in range(number)])
    texts = [Written((), 0.0, False)] * number
    for step in range(limit):
        still_open = [index for index, text in enumerate(texts) if not text.is_complete]
        if not still_open:
            break
        # Many texts begin alike: each beginning is asked for once.
        begun, which = np.unique(as_array([texts[index] for index in still_open]), axis=0, return_inverse=True)
        log_probs = next_tokens(begun)
        kept = truncate(log_probs, end, top_k=top_k, top_p=top_p)
        rows = which.reshape(-1)
        for index, row, token in zip(still_open, rows, draw(kept[rows], uniforms[still_open, step]), strict=True):
            texts[index] = extend(texts[index], int(token), float(log_probs[row, token]), end)
    return texts


def extend(text: Written, token: int, log_prob: float, end: int) -> Written:
    """Return ``text`` with one more token, or ended."""
    ids = text.ids if token == end else (*text.ids, token)
    return Written(ids, text.log_prob + log_prob, token == end)
