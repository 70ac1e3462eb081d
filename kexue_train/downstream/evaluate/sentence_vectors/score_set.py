"""One set of pairs, one model: how far cosines agree in order with the scores, for every kind of vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kexue_train.downstream.evaluate.sentence_vectors.baselines import random_vectors, word_cosines
from kexue_train.downstream.evaluate.sentence_vectors.moments import Moments
from kexue_train.downstream.evaluate.sentence_vectors.spearman import spearman, standard_error
from kexue_train.downstream.evaluate.sentence_vectors.sts_sets import Pairs
from kexue_train.downstream.evaluate.sentence_vectors.whitening import Whitening
from kexue_train.downstream.results.similarity import StsFailure, StsScore, WhiteningKind, column_of
from kexue_train.downstream.settings import Pooling
from kexue_train.foundation.errors import EvaluationError

Vectors = npt.NDArray[np.floating]
Places = npt.NDArray[np.int64]
Cosines = npt.NDArray[np.float64]


@dataclass(frozen=True)
class WhiteningChoice:
    """Which whitening stands beside the plain vectors."""

    kind: WhiteningKind = "own"
    """own: fitted on the sentences of each set."""
    dimensions: int | None = None
    """How many an own one keeps; None: all that vary."""
    given: Whitening | None = None
    pooling: Pooling | None = None
    """Of the vectors that the given one was fitted on; the others stay plain."""

    def kinds_for(self, pooling: Pooling) -> Sequence[WhiteningKind]:
        """Plain, and whitened if it is asked for."""
        return ["none"] if self.kind == "none" or self.pooling not in (None, pooling) else ["none", self.kind]

    def apply(self, kind: WhiteningKind, vectors: Vectors) -> Vectors:
        """The vectors (n, E), or (n, k) whitened ones.

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
    """Correlations of all kinds of vectors of ``pairs.sentences``; those that cannot be had, with the reason."""
    scores, failures = [], []
    for pooling, rows in vectors.items():
        for kind in whitening.kinds_for(pooling):
            dimensions = whitening.dimensions if kind == "own" else None
            try:
                made = whitening.apply(kind, rows)
                rho = spearman(pair_cosines(made, pairs.places), pairs.scores)
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
                    standard_error=standard_error(rho, len(pairs.places)),
                )
            )
    return scores, failures


def score_baselines(pairs: Pairs) -> tuple[dict[str, float], list[StsFailure]]:
    """The same of what needs no model.

    Raises:
        EvaluationError: If the scores have no order.
    """
    spearman(np.arange(len(pairs.scores)), pairs.scores)  # refuses scores without an order
    makers: dict[str, Callable[[], Cosines]] = {
        "random": lambda: pair_cosines(random_vectors(len(pairs.sentences)), pairs.places),
        "tf-idf": lambda: word_cosines(pairs.sentences, pairs.places),
    }
    found, failures = {}, []
    for column, make in makers.items():
        try:
            found[column] = spearman(make(), pairs.scores)
        except EvaluationError as error:
            failures.append(StsFailure(column=column, error=str(error)))
    return found, failures


def pair_cosines(vectors: Vectors, places: Places) -> Cosines:
    """Cosines of pairs (n, 2) of rows of ``vectors``: (n,).

    Raises:
        EvaluationError: If a vector is zero.
    """
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    if not norms.all():
        raise EvaluationError(f"{np.count_nonzero(norms == 0)} of {len(vectors)} vectors are zero, without direction")
    units = vectors / norms[:, None]
    return np.asarray((units[places[:, 0]] * units[places[:, 1]]).sum(axis=1))
