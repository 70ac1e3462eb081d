"""BERT-whitening: a linear map after which sentence vectors have mean 0 and covariance I.

    y = (x - μ) W        Σ = U Λ Uᵀ        W = U[:, :k] Λ[:k]^-½

Source: https://kexue.fm/archives/8069; Su et al., https://arxiv.org/abs/2103.15316.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from kexue_train.downstream.evaluate.sentence_vectors.moments import Array, Moments
from kexue_train.foundation.errors import EvaluationError

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
        """The map that ``moments`` ask for.

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
        """(n, E) -> (n, k), float64.

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
        """What ``save`` wrote: the map and the facts.

        Raises:
            EvaluationError: If the file is missing or another.
        """
        from safetensors import SafetensorError, safe_open  # noqa: PLC0415  # the same

        try:
            with safe_open(path, framework="numpy") as file:
                return cls(file.get_tensor("mean"), file.get_tensor("transform")), dict(file.metadata() or {})
        except (OSError, SafetensorError) as error:
            raise EvaluationError(
                f"{path}: no whitening ({error}); give a folder of 'kexue finetune whitening'"
            ) from None
