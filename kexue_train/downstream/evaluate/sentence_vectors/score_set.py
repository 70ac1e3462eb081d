"""One set of pairs: how far cosines agree in rank with the scores, for every kind of vector and for baselines."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kexue_train.downstream.evaluate.sentence_vectors.spearman import spearman, standard_error
from kexue_train.downstream.evaluate.sentence_vectors.sts_sets import Pairs
from kexue_train.downstream.evaluate.sentence_vectors.whitening import WHITENING_NAME, Moments, Whitening
from kexue_train.downstream.results.similarity import StsFailure, StsScore, WhiteningKind, column_of
from kexue_train.downstream.settings import POOLINGS, Pooling
from kexue_train.foundation.counter_rng import Purpose, generator
from kexue_train.foundation.errors import ConfigError, EvaluationError

_RANDOM_DIMENSIONS = 64
_WORD = re.compile(r"[㐀-鿿]|[^\W㐀-鿿]+")  # a Chinese character, or letters and digits up to the next


def random_vectors(number: int) -> npt.NDArray[np.float32]:
    """Return a random direction for every sentence, (number, 64): what equal sentences alone earn."""
    random = generator(0, Purpose.RANDOM_VECTORS)
    return random.standard_normal((number, _RANDOM_DIMENSIONS), np.float32)


def word_cosines(sentences: Sequence[str], pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return cosines of bags of words with tf·idf, of pairs (n, 2) of indices in ``sentences``: (n,), 0 without words.

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


Vectors = npt.NDArray[np.floating]
Indices = npt.NDArray[np.int64]
Cosines = npt.NDArray[np.float64]


@dataclass(frozen=True)
class WhiteningChoice:
    """Which whitened vectors are scored in addition to the plain ones."""

    kind: WhiteningKind = "own"
    """own: fitted on the sentences of each set."""
    dimensions: int | None = None
    """How many an own one keeps; None: all that vary."""
    given: Whitening | None = None
    pooling: Pooling | None = None
    """Of the vectors that the given one was fitted on; the others stay plain."""

    def kinds_for(self, pooling: Pooling) -> Sequence[WhiteningKind]:
        """Return which vectors are scored: plain ones, and whitened ones if asked for."""
        return ["none"] if self.kind == "none" or self.pooling not in (None, pooling) else ["none", self.kind]

    def apply(self, kind: WhiteningKind, vectors: Vectors) -> Vectors:
        """Return the vectors (n, E), or whitened ones (n, k).

        Raises:
            EvaluationError: If they vary in too few directions, or are of another size than the given whitening.
        """
        if kind == "none":
            return vectors
        fitted = self.given or Whitening.fit(Moments.of(vectors), self.dimensions)
        return fitted.apply(vectors)


def score_vectors(
    pairs: Pairs, vectors: Mapping[Pooling, Vectors], whitening: WhiteningChoice
) -> tuple[list[StsScore], list[StsFailure]]:
    """Score all kinds of vectors of ``pairs.sentences``; returns the scores, and failures with their reason."""
    scores, failures = [], []
    for pooling, rows in vectors.items():
        for kind in whitening.kinds_for(pooling):
            dimensions = whitening.dimensions if kind == "own" else None
            try:
                made = whitening.apply(kind, rows)
                rho = spearman(pair_cosines(made, pairs.indices), pairs.scores)
            except EvaluationError as error:
                failures.append(StsFailure(column=column_of(pooling, kind, dimensions), error=str(error)))
                continue
            scores.append(
                StsScore(
                    pooling=pooling,
                    whitening=kind,
                    dimensions=made.shape[1],
                    asked_dimensions=dimensions,
                    spearman=rho,
                    standard_error=standard_error(rho, len(pairs.indices)),
                )
            )
    return scores, failures


def score_baselines(pairs: Pairs) -> tuple[dict[str, float], list[StsFailure]]:
    """Score random vectors and bags of words, which need no model; returns the scores, and failures.

    Raises:
        EvaluationError: If the scores have no order.
    """
    spearman(np.arange(len(pairs.scores)), pairs.scores)  # refuses scores without an order
    makers: dict[str, Callable[[], Cosines]] = {
        "random": lambda: pair_cosines(random_vectors(len(pairs.sentences)), pairs.indices),
        "tf-idf": lambda: word_cosines(pairs.sentences, pairs.indices),
    }
    found, failures = {}, []
    for column, make in makers.items():
        try:
            found[column] = spearman(make(), pairs.scores)
        except EvaluationError as error:
            failures.append(StsFailure(column=column, error=str(error)))
    return found, failures


def pair_cosines(vectors: Vectors, indices: Indices) -> Cosines:
    """Return cosines of pairs (n, 2) of rows of ``vectors``: (n,).

    Raises:
        EvaluationError: If a vector is zero.
    """
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    if not norms.all():
        raise EvaluationError(f"{np.count_nonzero(norms == 0)} of {len(vectors)} vectors are zero, with no direction")
    units = vectors / norms[:, None]
    return np.asarray((units[indices[:, 0]] * units[indices[:, 1]]).sum(axis=1))


def choose_whitening(text: str) -> WhiteningChoice:
    """Return the whitening that ``text`` names: ``none``, ``all`` or a number (each set's own), or a folder with one.

    Raises:
        ConfigError: If it is something else.
        EvaluationError: If the folder's whitening cannot be read.
    """
    if text == "none":
        return WhiteningChoice(kind="none")
    if text == "all":
        return WhiteningChoice()
    if text.isdigit() and int(text):
        return WhiteningChoice(dimensions=int(text))
    if not Path(text).is_dir():
        raise ConfigError(
            f"--whitening {text!r} is not a folder; give one of 'kexue finetune whitening', a number of dimensions, "
            "'all' or 'none'"
        )
    given, facts = Whitening.load(Path(text) / WHITENING_NAME)
    pooling = next((name for name in POOLINGS if name == facts.get("pooling")), None)
    if pooling is None:
        raise EvaluationError(
            f"{text}: the whitening was fitted with the pooling {facts.get('pooling')!r}, which is not one of "
            f"{', '.join(POOLINGS)}"
        )
    return WhiteningChoice(kind="given", given=given, pooling=pooling)
