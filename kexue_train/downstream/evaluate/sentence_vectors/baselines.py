"""What pairs of sentences are worth without a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kexue_train.foundation.counter_rng import Purpose, generator

_RANDOM_DIMENSIONS = 64
_WORD = re.compile(r"[㐀-鿿]|[^\W㐀-鿿]+")  # a Chinese character, or letters and digits up to the next


def random_vectors(number: int) -> npt.NDArray[np.float32]:
    """A direction for every sentence, (number, 64): what is earned by equal sentences alone."""
    random = generator(0, Purpose.RANDOM_VECTORS)
    return random.standard_normal((number, _RANDOM_DIMENSIONS), np.float32)


def word_cosines(sentences: Sequence[str], pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Cosines of bags of words weighted by tf·idf, of pairs (n, 2) of places in ``sentences``: (n,), 0 without words.

    Words are runs of letters and digits in lower case, and single Chinese characters; idf = ln((1+N)/(1+df)) + 1, over
    these sentences.
    """
    bags = [Counter(_WORD.findall(sentence.lower())) for sentence in sentences]
    frequency = Counter(word for bag in bags for word in bag)
    idf = {word: float(np.log((1 + len(bags)) / (1 + count)) + 1) for word, count in frequency.items()}
    weighted = [{word: count * idf[word] for word, count in bag.items()} for bag in bags]
    norms = [sum(weight**2 for weight in bag.values()) ** 0.5 or 1.0 for bag in weighted]
    return np.array(
        [
            sum(weight * weighted[b].get(word, 0.0) for word, weight in weighted[a].items()) / (norms[a] * norms[b])
            for a, b in pairs.tolist()
        ]
    )
