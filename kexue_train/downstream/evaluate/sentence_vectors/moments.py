"""Mean and covariance of vectors that come in pieces, in float64: bounded memory, and shares of workers merge."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Self, cast

import numpy as np
import numpy.typing as npt

from kexue_train.foundation.errors import EvaluationError

Array = npt.NDArray[np.float64]
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Moments:
    """What ``n`` vectors leave behind; (E, E) numbers, however many vectors there are."""

    count: int
    mean: Array
    """(E,)"""
    scatter: Array
    """(E, E): the sum of (x-μ)(x-μ)ᵀ."""

    @classmethod
    def of(cls, vectors: npt.NDArray[np.floating]) -> Self:
        """Those of the rows of (n, E), n at least 1, worked on some thousand at a time.

        Raises:
            EvaluationError: If a number is not finite.
        """
        pieces = [vectors[i : i + _ROWS_AT_ONCE] for i in range(0, len(vectors), _ROWS_AT_ONCE)]
        return cls.merged(map(cls._of_piece, pieces))

    @classmethod
    def _of_piece(cls, vectors: npt.NDArray[np.floating]) -> Self:
        rows = vectors.astype(np.float64)
        mean = rows.mean(axis=0)
        if not np.isfinite(mean).all():
            broken = np.count_nonzero(~np.isfinite(rows).all(axis=1))
            raise EvaluationError(f"{broken} of {len(rows)} vectors are not finite; a covariance needs finite ones")
        rows -= mean
        return cls(len(rows), mean, rows.T @ rows)

    @classmethod
    def merged(cls, parts: Iterable[Self]) -> Self:
        """Those of all parts together, which may come one by one; in another order they differ in the last bits.

        Raises:
            EvaluationError: If there is no part.
        """
        whole = reduce(lambda done, part: part if done is None else done.merge(part), parts, cast(Self | None, None))
        if whole is None:
            raise EvaluationError("no vectors, so no mean and covariance; give sentences")
        return whole

    def merge(self, other: Self) -> Self:
        """Those of both together, without the cancellation of raw sums.

        Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
        1979.

        Raises:
            EvaluationError: If the sizes differ.
        """
        if self.mean.shape != other.mean.shape:
            raise EvaluationError(
                f"vectors of {len(self.mean)} and of {len(other.mean)} numbers have no common covariance; "
                "merge what one model and one pooling made"
            )
        count, apart = self.count + other.count, other.mean - self.mean
        between = np.outer(apart, apart) * (self.count * other.count / count)
        return type(self)(count, self.mean + apart * (other.count / count), self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Array:
        """(E, E), divided by n."""
        return self.scatter / self.count

    def save(self, path: Path) -> None:
        """Write a safetensors file, for ``load``."""
        from safetensors.numpy import save_file  # noqa: PLC0415  # only where a file is written

        save_file({"count": np.array([self.count]), "mean": self.mean, "scatter": self.scatter}, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """What ``save`` wrote.

        Raises:
            EvaluationError: If the file is missing or another.
        """
        from safetensors import SafetensorError  # noqa: PLC0415  # the same
        from safetensors.numpy import load_file  # noqa: PLC0415  # the same

        try:
            held = load_file(path)
            return cls(int(held["count"][0]), held["mean"], held["scatter"])
        except (OSError, KeyError, SafetensorError) as error:
            raise EvaluationError(
                f"{path}: no moments of sentence vectors ({error}); give a folder of 'kexue finetune whitening'"
            ) from None
