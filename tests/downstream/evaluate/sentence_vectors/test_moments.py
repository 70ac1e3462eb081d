"""Streaming moments are those of all vectors at once, however they are cut and merged."""

from __future__ import annotations

import multiprocessing
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexue_train.downstream.evaluate.sentence_vectors.whitening import Moments
from kexue_train.foundation.errors import EvaluationError


def vectors(number: int, size: int = 6, *, seed: int = 0, centre: float = 3.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(number, size)) @ random.normal(size=(size, size)) + centre


def assert_are_of(moments: Moments, rows: np.ndarray, rtol: float = 1e-10) -> None:
    assert moments.count == len(rows)
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=rtol)
    np.testing.assert_allclose(moments.covariance, np.cov(rows.T, bias=True), rtol=rtol, atol=1e-12)


def test_many_pieces_are_as_one() -> None:
    rows = vectors(10_000)
    assert_are_of(Moments.of(rows), rows)


@given(cuts=st.sets(st.integers(1, 39), max_size=8), order=st.randoms())
@settings(max_examples=50, deadline=None)
def test_parts_merge_to_the_whole_in_any_order(cuts: set[int], order: object) -> None:
    rows = vectors(40)
    parts = [Moments.of(part) for part in np.split(rows, sorted(cuts))]
    order.shuffle(parts)  # type: ignore[attr-defined]
    assert_are_of(Moments.merged(parts), rows)


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    """Raw sums of squares would lose all of the variance: 1 beside 10¹⁶ is below the last bit of a double."""
    rows = vectors(9_000, centre=1e8)
    assert_are_of(Moments.of(rows), rows, rtol=1e-6)
    raw = (rows.T @ rows) / len(rows) - np.outer(rows.mean(axis=0), rows.mean(axis=0))
    assert np.abs(raw - np.cov(rows.T, bias=True)).max() > 0.1


def test_fp32_vectors_are_summed_in_fp64() -> None:
    rows = vectors(5_000).astype(np.float32)
    assert_are_of(Moments.of(rows), rows.astype(np.float64))


def test_shares_of_worker_processes_merge() -> None:
    rows = vectors(3_000)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as workers:
        parts = list(workers.map(Moments.of, np.array_split(rows, 5)))
    assert_are_of(Moments.merged(parts), rows)


def test_memory_does_not_grow_with_the_vectors() -> None:
    def peak(pieces: int) -> int:
        def parts() -> Iterator[Moments]:
            for number in range(pieces):
                yield Moments.of(vectors(4096, 32, seed=number))

        tracemalloc.start()
        Moments.merged(parts())
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(2)
    assert peak(40) < 1.2 * peak(4)


def test_a_file_holds_them(tmp_path: Path) -> None:
    moments = Moments.of(vectors(20))
    moments.save(tmp_path / "moments.safetensors")
    assert_are_of(Moments.load(tmp_path / "moments.safetensors"), vectors(20))
    (tmp_path / "torn").write_bytes((tmp_path / "moments.safetensors").read_bytes()[:50])
    for name in ("torn", "none"):
        with pytest.raises(EvaluationError, match=f"{name}: not moments of sentence vectors"):
            Moments.load(tmp_path / name)


def test_what_has_no_moments_is_refused() -> None:
    broken = vectors(10)
    broken[3, 2] = np.nan
    with pytest.raises(EvaluationError, match="1 of 10 vectors are not finite"):
        Moments.of(broken)
    with pytest.raises(EvaluationError, match="of 6 and of 5 numbers"):
        Moments.of(vectors(10)).merge(Moments.of(vectors(10, 5)))
    with pytest.raises(EvaluationError, match="no vectors"):
        Moments.of(vectors(0))
