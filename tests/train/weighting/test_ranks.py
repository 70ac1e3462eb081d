"""Two ranks weigh tasks as one does with the micro-batches of both."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.train.weighting.run_rank import ORDER, main
from tests.train.weighting.test_schemes import CONFIGS

pytestmark = pytest.mark.slow
WORKER = Path(__file__).with_name("run_rank.py")


@pytest.fixture(scope="module")
def ends(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("ranks")
    processes = [subprocess.Popen([sys.executable, WORKER, str(rank), "2", str(folder)]) for rank in range(2)]
    main(0, 1, folder)
    assert [process.wait(300) for process in processes] == [0, 0]
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in ("0-of-1", "0-of-2", "1-of-2")}


@pytest.mark.parametrize("name", CONFIGS)
def test_two_ranks_are_one(ends, name):
    alone, first, second = (ends[run][name] for run in ("0-of-1", "0-of-2", "1-of-2"))
    assert first["state"] == second["state"]
    given = [tuple(pair) for pair in alone["given"]]
    own = [first["given"], second["given"]]
    both = [tuple(own[number % 2][number // 2]) for number in range(len(given))]
    assert [task for task, _ in both] == [task for task, _ in given] == list(ORDER) * 4
    np.testing.assert_allclose([weight for _, weight in both], [weight for _, weight in given], rtol=2e-4)
    assert first["parameters"] == second["parameters"]
    # A sign of a momentum near 0 may fall the other way: at most a few of 4,009 parameters, by a few steps.
    apart = np.abs(np.subtract(first["parameters"], alone["parameters"])) > 1e-6
    assert apart.mean() < 0.002
