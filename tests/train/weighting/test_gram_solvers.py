"""The two small problems, against solutions found by trying every support."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from kexue_train.train.weighting.gram_solvers import guard_multipliers, min_norm_shares

Matrix = npt.NDArray[np.float64]


def supports(number: int) -> Iterator[list[int]]:
    for size in range(number + 1):
        yield from map(list, combinations(range(number), size))


def shortest_by_trial(gram: Matrix) -> float:
    """‖u‖² of the shortest convex combination: on every support the stationary one, if its shares are positive."""
    best = np.inf
    for support in supports(len(gram)) if len(gram) else ():
        if support:
            ones = np.ones(len(support))
            shares = np.linalg.solve(gram[np.ix_(support, support)], ones)
            shares /= shares.sum()
            if (shares >= 0).all():
                best = min(best, shares @ gram[np.ix_(support, support)] @ shares)
    return float(best)


def multipliers_by_trial(gram: Matrix) -> Matrix:
    """λ: on every support the one that makes its guards orthogonal to u, if it is positive and hurts no other."""
    for support in supports(len(gram) - 1):
        own = [guard + 1 for guard in support]
        found = np.zeros(len(gram))
        found[0] = 1
        if own:
            found[own] = np.linalg.solve(gram[np.ix_(own, own)], -gram[own, 0])
        if (found >= 0).all() and (gram @ found >= -1e-9)[1:].all():
            return found[1:]
    raise AssertionError("no support is optimal")


def vectors(tasks: int, seed: int, conflict: float) -> Matrix:
    """Vectors whose scales differ by a factor of up to 10, drawn away from their common direction."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((tasks, 12))
    drawn -= conflict * drawn.mean(0)
    return drawn * 10 ** rng.uniform(0, 1, (tasks, 1))


@pytest.mark.parametrize("conflict", [0.0, 0.9])
@pytest.mark.parametrize("tasks", [1, 2, 3, 6, 9])
def test_the_shortest_combination_is_as_short_as_can_be_and_hurts_no_task(tasks, conflict):
    for seed in range(5):
        drawn = vectors(tasks, seed, conflict)
        gram = drawn @ drawn.T
        shares = min_norm_shares(torch.from_numpy(gram)).numpy()
        assert shares.min() >= 0
        assert shares.sum() == pytest.approx(1)
        u = shares @ drawn
        assert u @ u == pytest.approx(shortest_by_trial(gram), rel=1e-6)
        assert (drawn @ u).min() >= u @ u - 1e-8 * gram.diagonal().max()


def test_many_tasks_in_conflict_converge():
    drawn = vectors(33, 0, 0.5)[:, :8]
    gram = drawn @ drawn.T  # 33 tasks in 8 dimensions: 0 is among the combinations
    u = min_norm_shares(torch.from_numpy(gram)).numpy() @ drawn
    assert u @ u < 1e-8 * gram.diagonal().max()


@pytest.mark.parametrize(
    ("gram", "shares"),
    [
        ([[1.0, 0.0], [0.0, 3.0]], [0.75, 0.25]),
        ([[1.0, 1.0], [1.0, 1.0]], [0.5, 0.5]),
        ([[1.0, -1.0], [-1.0, 1.0]], [0.5, 0.5]),
        ([[1.0, 2.0], [2.0, 9.0]], [1.0, 0.0]),
        ([[0.0, 0.0], [0.0, 4.0]], [1.0, 0.0]),
        ([[0.0, 0.0], [0.0, 0.0]], [0.5, 0.5]),
    ],
    ids=["orthogonal", "equal", "opposite", "one is inside", "one is done", "both are done"],
)
def test_two_tasks_by_hand(gram, shares):
    assert min_norm_shares(torch.tensor(gram, dtype=torch.float64)).tolist() == pytest.approx(shares)


@pytest.mark.parametrize("guards", [1, 2, 4, 7])
def test_the_nearest_vector_that_hurts_no_guard(guards):
    for seed in range(8):
        drawn = vectors(guards + 1, seed, 1.5)
        gram = drawn @ drawn.T
        found = guard_multipliers(torch.from_numpy(gram)).numpy()
        np.testing.assert_allclose(found, multipliers_by_trial(gram), rtol=1e-4, atol=1e-6)
        u = drawn[0] + found @ drawn[1:]
        served = drawn[1:] @ u
        scale = gram.diagonal().max()
        assert served.min() >= -1e-8 * scale
        assert np.abs(found * served).max() < 1e-7 * scale  # a guard that is not at its limit does not count
        assert u @ drawn[0] == pytest.approx(u @ u, abs=1e-7 * scale)


def test_one_guard_by_hand():
    main, guard = np.array([1.0, 0.0]), np.array([-2.0, 2.0])
    gram = torch.from_numpy(np.array([[main @ main, main @ guard], [main @ guard, guard @ guard]]))
    assert guard_multipliers(gram).tolist() == pytest.approx([2 / 8])
    gram[0, 1] = gram[1, 0] = 2.0
    assert guard_multipliers(gram).tolist() == [0.0]


def test_guards_without_a_gradient_or_against_each_other_end():
    no_gradient = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    assert guard_multipliers(no_gradient).tolist() == [0.0]
    drawn = np.array([[1.0, 1.0], [-1.0, 0.0], [1.0, 0.0]])  # only the second axis is left
    found = guard_multipliers(torch.from_numpy(drawn @ drawn.T)).numpy()
    np.testing.assert_allclose(drawn[0] + found @ drawn[1:], [0.0, 1.0], atol=1e-8)
