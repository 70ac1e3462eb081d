"""Tiger in two processes: each folds its own half of the data, one all-reduce per window makes them one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.train.warm_worker import WarmProcess

pytestmark = pytest.mark.slow

Parameters = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def results(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Parameters]:
    """Final parameters by run: ``{good,bad}-{rank}-of-{ranks}``."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "PYTHONPATH": str(repository), "GLOO_SOCKET_IFNAME": "lo"}
    script = Path(__file__).with_name("run_rank.py")
    processes = [
        WarmProcess([script, rank, ranks, folder], environment, folder=repository)
        for rank, ranks in (("0", "2"), ("1", "2"), ("0", "1"))
    ]
    try:
        assert [process.wait(timeout=600) for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
    return {path.stem: dict(np.load(path)) for path in folder.glob("*.npz")}


RUNS = ("good", "bad", "gradient", "missing", "lazy", "bf16")


@pytest.mark.parametrize("run", RUNS)
def test_ranks_end_with_the_same_bits(results, run):
    first, second = results[f"{run}-0-of-2"], results[f"{run}-1-of-2"]
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("run", ["good", "gradient", "missing", "lazy"])
def test_two_ranks_equal_one_process_with_the_whole_batch(results, run):
    for name, expected in results[f"{run}-0-of-1"].items():
        np.testing.assert_allclose(results[f"{run}-0-of-2"][name], expected, atol=1e-14, rtol=0)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("run", ["good", "bad", "missing"])
def test_gradients_that_are_folded_together_give_the_same_bits(results, run, ranks):
    apart, together = results[f"{run}-0-of-{ranks}"], results[f"{run} together-0-of-{ranks}"]
    assert all(np.array_equal(apart[name], together[name]) for name in apart)


def test_runs_differ_where_they_should(results):
    good, lazy, missing = (results[f"{run}-0-of-2"] for run in ("good", "lazy", "missing"))
    assert not np.array_equal(good["table"], lazy["table"])
    assert not np.array_equal(good["matrix"], missing["matrix"])


def test_a_bad_gradient_on_one_rank_shrinks_the_tensor_on_both(results):
    bad, good = results["bad-0-of-2"], results["good-0-of-2"]
    assert np.isfinite(bad["matrix"]).all()
    assert not np.array_equal(bad["matrix"], good["matrix"])
    assert all(np.array_equal(bad[name], good[name]) for name in ("table", "vector"))
