"""Mean and covariance of vectors, and BERT-whitening: a linear map after which they are 0 and I.

    y = (x - μ) W        Σ = U Λ Uᵀ        W = U[:, :k] Λ[:k]^-½

The moments are summed in float64 from pieces: memory is bounded, and the shares of several workers merge.

Source: https://kexue.fm/archives/8069; Su et al., https://arxiv.org/abs/2103.15316.
"""

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
        """Return the moments of the rows of (n, E), n at least 1, computed some thousand rows at a time.

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
        """Merge the moments of all parts, which may come one by one; another order changes the last bits.

        Raises:
            EvaluationError: If there is no part.
        """
        whole = reduce(lambda done, part: part if done is None else done.merge(part), parts, cast(Self | None, None))
        if whole is None:
            raise EvaluationError("no vectors, so no mean and covariance; give sentences")
        return whole

    def merge(self, other: Self) -> Self:
        """Merge the moments of both, without the cancellation of raw sums.

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
        """Read what ``save`` wrote.

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
                f"{path}: not moments of sentence vectors ({error}); give a folder of 'kexue finetune whitening'"
            ) from None


WHITENING_NAME = "whitening.safetensors"
_FP32_ROUNDING = 2.0**-24


@dataclass(frozen=True)
class Whitening:
    """The map."""

    mean: Array
    """(E,)"""
    transform: Array
    """(E, k): W, the directions of largest variance first."""

    @classmethod
    def fit(cls, moments: Moments, dimensions: int | None = None) -> Self:
        """Fit the map to ``moments``.

        Args:
            moments: Of the vectors, computed in fp32 or better.
            dimensions: How many directions to keep, k; None keeps all that are more than rounding noise.

        Raises:
            EvaluationError: If the vectors vary in fewer directions than ``dimensions``, or in none.
        """
        values, directions = np.linalg.eigh(moments.covariance)
        values, directions = values[::-1], directions[:, ::-1]
        square_norm = np.trace(moments.covariance) + moments.mean @ moments.mean
        rank = int(np.count_nonzero(values > len(values) * _FP32_ROUNDING**2 * square_norm))
        kept = rank if dimensions is None else dimensions
        if not 0 < kept <= rank:
            raise EvaluationError(
                f"whitening to {kept or 'any'} dimensions: {moments.count:,} vectors of {len(values)} numbers vary in "
                f"only {rank}; ask for at most {rank}, or give more different sentences"
            )
        return cls(moments.mean, directions[:, :kept] / np.sqrt(values[:kept]))

    def apply(self, vectors: npt.NDArray[np.floating]) -> Array:
        """Map vectors (n, E) to (n, k), float64.

        Raises:
            EvaluationError: If the vectors are of another size.
        """
        if vectors.shape[1] != len(self.mean):
            raise EvaluationError(
                f"the whitening is for vectors of {len(self.mean)} numbers, these have {vectors.shape[1]}; "
                "fit one for this model"
            )
        return np.asarray((vectors - self.mean) @ self.transform)

    def save(self, path: Path, **facts: str) -> None:
        """Write ``mean`` and ``transform`` as a safetensors file, with ``facts`` in its header."""
        from safetensors.numpy import save_file  # noqa: PLC0415  # only where a file is written

        save_file({"mean": self.mean, "transform": np.ascontiguousarray(self.transform)}, path, metadata=facts)

    @classmethod
    def load(cls, path: Path) -> tuple[Self, dict[str, str]]:
        """Read what ``save`` wrote: the map and the facts.

        Raises:
            EvaluationError: If the file is missing or another.
        """
        from safetensors import SafetensorError, safe_open  # noqa: PLC0415  # the same

        try:
            with safe_open(path, framework="numpy") as file:
                return cls(file.get_tensor("mean"), file.get_tensor("transform")), dict(file.metadata() or {})
        except (OSError, SafetensorError) as error:
            raise EvaluationError(
                f"{path}: not a whitening ({error}); give a folder of 'kexue finetune whitening'"
            ) from None
