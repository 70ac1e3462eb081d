"""Any backwards on two and three ranks: replicas end with the same bits, and as one process with all rows would."""

from __future__ import annotations

import multiprocessing

import numpy as np
import pytest

from tests.optim import rank_cases

pytestmark = pytest.mark.slow

Ends = dict[tuple[str, int], dict[str, np.ndarray]]
DDP = [
    f"ddp, {accumulate}, {views=}, {syncs=}"
    for accumulate in ("momentum", "gradient")
    for views, syncs in rank_cases.DDP_WAYS
]
CASES = [*rank_cases.CASES, "heads, momentum", "heads, gradient", *DDP]


@pytest.fixture(scope="module", params=[2, 3])
def ends(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Ends]:
    """All results of all ranks, by case and rank; the processes are forked from one that has imported torch."""
    folder, ranks = tmp_path_factory.mktemp("ranks"), request.param
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.optim.rank_cases"])
    processes = [context.Process(target=rank_cases.main, args=(rank, ranks, folder)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * ranks
    names = [path.stem.rpartition("-") for path in folder.glob("*.npz")]
    return ranks, {(case, int(rank)): dict(np.load(folder / f"{case}-{rank}.npz")) for case, _, rank in names}


def alone(case: str, ranks: int) -> dict[str, np.ndarray]:
    """What one process makes of all rows."""
    if case.startswith("heads"):
        return rank_cases.heads_differ(0, 0, ranks_of_one=ranks, accumulate=case.removeprefix("heads, "))
    return rank_cases.run("one loss" if case.startswith("ddp") else case, 0, 0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_ranks_end_alike_and_as_one_process(ends, case):
    ranks, of = ends
    for rank in range(1, ranks):
        assert all(np.array_equal(of[case, 0][name], of[case, rank][name]) for name in of[case, 0])
    for name, expected in alone(case, ranks).items():
        np.testing.assert_allclose(of[case, 0][name], expected, atol=1e-14, rtol=0, err_msg=name)


def test_a_tensor_frozen_on_one_rank_only_is_an_error_on_all(ends):
    ranks, of = ends
    for rank in range(ranks):
        message = str(of["frozen on one rank", rank]["message"])
        assert message.startswith("shared.weight, shared.bias: requires_grad is False on some ranks only")
