"""The same global batches whoever makes them, and however a run was interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kexue_train.batches import rows_of_step
from kexue_train.batches.collate import Batch, make_batch
from kexue_train.batches.dataset import SampleDataset
from kexue_train.batches.loader import Plan, iter_batches, read_ahead
from kexue_train.foundation.artifacts import read_manifest
from tests.batches.dense import assert_same, dense, join
from tests.batches.epochs import epochs_of_step

GLOBAL = 24
STEPS = 200  # more than a hundred epochs, so that most batches have an end of one inside


@pytest.fixture(scope="module")
def dataset(samples: Path) -> SampleDataset:
    return SampleDataset(samples)


@pytest.fixture(scope="module")
def expected(samples: Path) -> list[dict[str, np.ndarray]]:
    """The global batches of the first steps, made from the rows of a step at once."""
    manifest, dataset = read_manifest(samples), SampleDataset(samples)
    rows = [rows_of_step(manifest, 2, GLOBAL, step) for step in range(STEPS)]
    epochs = [epochs_of_step(manifest, GLOBAL, step) for step in range(STEPS)]
    return [dense(make_batch(dataset, rows[step], epochs[step], seed=2)) for step in range(STEPS)]


def make_plan(rank: int, world: int, accumulation: int = 1) -> Plan:
    size = GLOBAL // world // accumulation
    return Plan(
        seed=2,
        rank=rank,
        world_size=world,
        micro_batch_size=size,
        accumulation_steps=accumulation,
        global_batch_size=GLOBAL,
    )


def batches(dataset: SampleDataset, plan: Plan, start: int, steps: int, processes: int = 0) -> list[Batch]:
    made = iter_batches(dataset, plan, start_step=start, num_processes=processes)
    with closing(read_ahead(made)) as ready:
        return list(islice(ready, steps * plan.accumulation_steps))


def global_batches(
    dataset: SampleDataset, world: int, accumulation: int, start: int, steps: int, processes: int = 0
) -> list[dict[str, np.ndarray]]:
    plans = [make_plan(rank, world, accumulation) for rank in range(world)]
    ranks = [batches(dataset, plan, start, steps, processes) for plan in plans]
    return [
        join([ranks[rank][step * accumulation + j] for j in range(accumulation) for rank in range(world)])
        for step in range(steps)
    ]


@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (1, 3), (2, 2), (3, 4), (8, 3), (8, 1)])
def test_two_hundred_global_batches_are_the_same_on_any_number_of_ranks(
    dataset: SampleDataset, expected: list[dict[str, np.ndarray]], world: int, accumulation: int
) -> None:
    for found, wanted in zip(global_batches(dataset, world, accumulation, 0, STEPS), expected, strict=True):
        assert_same(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize(("world", "processes"), [(1, 4), (3, 2)])
def test_two_hundred_global_batches_are_the_same_with_loader_processes(
    dataset: SampleDataset, expected: list[dict[str, np.ndarray]], world: int, processes: int
) -> None:
    for found, wanted in zip(global_batches(dataset, world, 1, 0, STEPS, processes=processes), expected, strict=True):
        assert_same(found, wanted)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from([1, 2, 3, 8]), st.integers(1, 60)), min_size=3, max_size=8))
def test_a_run_stopped_anywhere_goes_on_with_other_ranks(
    dataset: SampleDataset, expected: list[dict[str, np.ndarray]], runs: list[tuple[int, int]]
) -> None:
    step = 0
    for world, steps in runs:
        steps = min(steps, STEPS - step)
        for found in global_batches(dataset, world, 1, step, steps):
            assert_same(found, expected[step])
            step += 1


def test_most_batches_of_these_tests_hold_the_end_of_an_epoch(samples: Path) -> None:
    epochs = [epochs_of_step(read_manifest(samples), GLOBAL, step) for step in range(STEPS)]
    assert sum(epoch[0] != epoch[-1] for epoch in epochs) > STEPS / 4


def test_closing_ends_the_thread(dataset: SampleDataset) -> None:
    before = threading.active_count()
    assert len(batches(dataset, make_plan(0, 1), 0, 2)) == 2
    assert threading.active_count() == before


def test_an_error_in_the_thread_is_raised_here(dataset: SampleDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(rows: np.ndarray) -> dict:
        raise OSError("disk gone")

    monkeypatch.setattr(dataset, "take", fail)
    before = threading.active_count()
    with pytest.raises(OSError, match="disk gone"):
        batches(dataset, make_plan(0, 1), 0, 1)
    assert threading.active_count() == before


def children() -> set[int]:
    found = set()
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # killed, and not yet waited for
            found |= {child.pid} if "spawn_main" in " ".join(child.cmdline()) else set()
    return found


@pytest.mark.slow
def test_closing_ends_the_processes(dataset: SampleDataset) -> None:
    before = children()
    with closing(read_ahead(iter_batches(dataset, make_plan(0, 1), start_step=0, num_processes=2))) as ready:
        next(ready)
        assert len(children() - before) == 2
    assert children() == before


@pytest.mark.slow
def test_an_error_in_a_process_is_raised_here(tmp_path: Path, write_samples: Callable[..., Path]) -> None:
    from kexue_train.foundation.errors import ArtifactError

    folder = write_samples(tmp_path / "samples")
    dataset = SampleDataset(folder)
    for path in folder.glob("data-*.arrow"):
        path.unlink()
    with pytest.raises(ArtifactError, match="data-00000-of-00003"):
        batches(dataset, make_plan(0, 1), 0, 1, processes=2)


@pytest.mark.slow
def test_a_killed_process_is_replaced_and_no_batch_is_lost(
    dataset: SampleDataset, expected: list[dict[str, np.ndarray]]
) -> None:
    before = children()
    with closing(iter_batches(dataset, make_plan(0, 1), start_step=0, num_processes=2)) as made:
        for step, batch in enumerate(islice(made, 12)):
            if step % 4 == 0:
                os.kill(min(children() - before), signal.SIGKILL)
            assert_same(dense(batch), expected[step])


@pytest.mark.slow
def test_a_process_that_gave_up_waiting_during_a_validation_is_replaced(
    dataset: SampleDataset, expected: list[dict[str, np.ndarray]]
) -> None:
    with closing(iter_batches(dataset, make_plan(0, 1), start_step=0, num_processes=1)) as made:
        assert_same(dense(next(made)), expected[0])
        _, alive = psutil.wait_procs([psutil.Process(pid) for pid in children()], timeout=300)
        assert alive == []
        for step in (1, 2):
            assert_same(dense(next(made)), expected[step])


TRAINER = """
import sys, time
from pathlib import Path
from kexue_train.batches.dataset import SampleDataset
from kexue_train.batches.loader import Plan, iter_batches, read_ahead

if __name__ == "__main__":
    plan = Plan(seed=2, rank=0, world_size=1, micro_batch_size=8, accumulation_steps=1, global_batch_size=8)
    ready = read_ahead(iter_batches(SampleDataset(Path(sys.argv[1])), plan, start_step=0, num_processes=3))
    next(ready)
    print("ready", flush=True)
    time.sleep(100)
"""


@pytest.mark.slow
def test_kill_9_of_the_trainer_leaves_no_process(samples: Path, tmp_path: Path) -> None:
    (tmp_path / "trainer.py").write_text(TRAINER)
    with subprocess.Popen(
        [sys.executable, tmp_path / "trainer.py", samples], stdout=subprocess.PIPE, text=True
    ) as trainer:
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == "ready\n"
        left = psutil.Process(trainer.pid).children(recursive=True)
        assert len(left) >= 3
        trainer.kill()
    _, alive = psutil.wait_procs(left, timeout=300)
    assert alive == []


@pytest.mark.parametrize("change", [{"micro_batch_size": 5}, {"rank": 2}, {"rank": -1}, {"global_batch_size": 25}])
def test_sizes_that_do_not_multiply_out_are_refused(change: dict) -> None:
    sizes = {"rank": 0, "world_size": 2, "micro_batch_size": 4, "accumulation_steps": 3, "global_batch_size": 24}
    with pytest.raises(ValueError, match="must be micro_batch_size"):
        Plan(seed=2, **(sizes | change))


def test_what_is_read_ahead_is_the_same_in_the_same_order_and_not_much_is() -> None:
    made: list[int] = []

    def count():
        while True:
            made.append(len(made))
            yield made[-1]

    with closing(read_ahead(count())) as ready:
        assert list(islice(ready, 20)) == list(range(20))
        time.sleep(0.05)
        assert len(made) <= 20 + 4
