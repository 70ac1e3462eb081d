"""What whitening promises: mean 0, covariance I, distances of Mahalanobis kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kexue_train.downstream.evaluate.sentence_vectors.whitening import Moments, Whitening
from kexue_train.foundation.errors import EvaluationError
from tests.downstream.evaluate.sentence_vectors.test_moments import vectors


@pytest.mark.parametrize("dimensions", [None, 6, 4, 1])
def test_whitened_vectors_have_mean_0_and_covariance_1(dimensions: int | None) -> None:
    rows = vectors(500)
    white = Whitening.fit(Moments.of(rows), dimensions).apply(rows)
    assert white.shape == (500, dimensions or 6)
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-10)
    np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(dimensions or 6).squeeze(), atol=1e-10)


def test_distances_are_those_of_mahalanobis() -> None:
    rows = vectors(300)
    white = Whitening.fit(Moments.of(rows)).apply(rows)
    apart, inverse = rows[0] - rows[1], np.linalg.inv(np.cov(rows.T, bias=True))
    assert ((white[0] - white[1]) ** 2).sum() == pytest.approx(apart @ inverse @ apart)


def test_the_directions_of_largest_variance_are_kept() -> None:
    rows = np.random.default_rng(0).normal(size=(2000, 3)) * [1.0, 10.0, 0.1]
    transform = Whitening.fit(Moments.of(rows), 2).transform
    assert np.abs(transform * np.array([[1.0], [10.0], [0.1]])).argmax(axis=0).tolist() == [1, 0]


def test_scale_and_rotation_of_a_model_do_not_matter() -> None:
    rows = vectors(300)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    first, second = (Whitening.fit(Moments.of(r)).apply(r) for r in (rows, 7.0 * rows @ rotation - 2.0))
    np.testing.assert_allclose(first @ first.T, second @ second.T, atol=1e-8)


def test_rounding_noise_is_no_direction() -> None:
    """Vectors of a plane leave it by rounding to fp32 alone; that is not to be blown up to variance 1."""
    plane = (vectors(200, 2) @ np.random.default_rng(2).normal(size=(2, 6))).astype(np.float32)
    assert np.linalg.matrix_rank(plane - plane.mean(axis=0), tol=0) > 2
    moments = Moments.of(plane)
    assert Whitening.fit(moments).transform.shape == (6, 2)
    with pytest.raises(EvaluationError, match=r"to 3 dimensions: 200 vectors of 6 numbers vary in only 2; .*at most 2"):
        Whitening.fit(moments, 3)


def test_equal_vectors_cannot_be_whitened() -> None:
    with pytest.raises(EvaluationError, match="vary in only 0"):
        Whitening.fit(Moments.of(np.ones((5, 4))))


def test_a_file_holds_it(tmp_path: Path) -> None:
    fitted = Whitening.fit(Moments.of(vectors(100)), 3)
    fitted.save(tmp_path / "w.safetensors", pooling="mean")
    read, facts = Whitening.load(tmp_path / "w.safetensors")
    assert facts == {"pooling": "mean"}
    np.testing.assert_array_equal(read.apply(vectors(5)), fitted.apply(vectors(5)))
    with pytest.raises(EvaluationError, match="vectors of 6 numbers, these have 5"):
        read.apply(vectors(4, 5))
    with pytest.raises(EvaluationError, match="none: not a whitening"):
        Whitening.load(tmp_path / "none")
