"""Tokenized documents without a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kexue_train.samples.encode import Documents


def random_documents(lengths: Sequence[int], seed: int = 0, *, sentence_share: float = 0.1) -> Documents:
    """Documents of the given numbers of tokens; ``sentence_share`` of the tokens begin a sentence, 0.6 a word."""
    rng = np.random.default_rng(seed)
    offsets = np.cumsum([0, *lengths])
    total = int(offsets[-1])
    firsts = offsets[:-1][np.diff(offsets) > 0]
    sentences = np.union1d(firsts, np.flatnonzero(rng.random(total) < sentence_share)).astype(np.int64)
    words = rng.random(total) < 0.6
    words[sentences] = True
    return Documents(rng.integers(5, 99, total).astype(np.uint16), words, offsets, sentences)
