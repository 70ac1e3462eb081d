"""The grid of optimizers: rates are searched with few runs, runs are kept by all that matters, trainings train."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks.optimizer import app
from benchmarks.optimizer_grid import ADAMW, LAMB, LION, TIGERS, Stage, walk
from benchmarks.optimizer_grid_tables import cell_tables, gap_table, gaps
from benchmarks.optimizer_training import Cell, curve_points, settings_of, train
from benchmarks.rate_search import best_power
from benchmarks.run_store import Budget, OutOfTimeError, RunStore, open_runs
from benchmarks.sample_batches import heldout_batches, training_batches
from kexue_train.batches.dataset import SampleDataset
from kexue_train.foundation.errors import ConfigError
from tests.train.tiny_training import write_samples

CELL = Cell(1, 64, 8, 8)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return SampleDataset(write_samples(tmp_path_factory.mktemp("corpus")))


# --- runs in a file ---------------------------------------------------------------------------------------------------


def test_a_run_is_done_once_for_the_same_settings(tmp_path):
    path, done = tmp_path / "runs.json", []

    def work():
        done.append(len(done))
        return {"loss": done[-1]}

    for _ in range(2):  # the second time as after a kill: nothing was closed
        store = RunStore(path, {"machine": "this"})
        assert store.get({"lr": 1e-3, "seed": 0}, work, Budget.of(1)) == {"loss": 0}
        assert store.get({"seed": 1, "lr": 1e-3}, work, Budget.of(1)) == {"loss": 1}
    assert done == [0, 1]
    assert [run["facts"] for run in json.loads(path.read_text())["runs"]] == [{"machine": "this"}] * 2


def test_without_time_only_known_runs_are_found(tmp_path):
    store = RunStore(tmp_path / "runs.json", {})
    store.get({"seed": 0}, lambda: {"loss": 1.0}, Budget.of(1))
    assert store.get({"seed": 0}, pytest.fail, Budget.of(0)) == {"loss": 1.0}
    with pytest.raises(OutOfTimeError):
        store.get({"seed": 1}, pytest.fail, Budget.of(0))


def test_two_processes_cannot_add_to_one_file(tmp_path):
    path = tmp_path / "runs.json"
    with open_runs(path, {}), pytest.raises(ConfigError, match="in use"), open_runs(path, {}):
        pass
    with open_runs(path, {}):
        pass


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "runs.json"
    path.write_text('{"task": 1}')
    with pytest.raises(ConfigError, match="name another file"):
        RunStore(path, {})


# --- the search -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("best", "way", "tried"), [(3, 1, 3), (4, 1, 3), (5, 1, 4), (2, 1, 4), (2, -1, 3), (0, -1, 5)])
def test_the_search_ends_where_both_neighbours_are_worse(best, way, tried):
    asked = set()

    def loss(power):
        asked.add(power)
        return math.nan if power > best + 2 else (power - best) ** 2

    assert best_power(loss, 3, way) == best
    assert {best - 1, best, best + 1} <= asked
    assert len(asked) == tried


LEARNING = [(ADAMW, 4e-3, 8), (LAMB, 2e-2, 8), (LION, 8e-4, 4), (TIGERS[1], 2e-2, 4)]
OPTIMUM = {ADAMW: 2e-3 / 2, LAMB: 8e-3, LION: 4e-4 / 4, **dict.fromkeys(TIGERS, 0.008 / 4)}
LONGER = Cell(1, 64, 8, 16)
PLAN = (Stage(CELL, tuple(OPTIMUM), seeds=2), Stage(LONGER, (ADAMW, *TIGERS), seeds=1))


class Trainings:
    """Losses with a known best rate; ends after ``most`` runs."""

    def __init__(self, most: int) -> None:
        self.done, self.most = {}, most

    def __call__(self, cell, rule, lr, seed):
        key = cell, rule, lr, seed
        if key not in self.done:
            if len(self.done) == self.most:
                raise OutOfTimeError
            loss = math.log2(lr / OPTIMUM[rule]) ** 2 + (rule.beta or 0) + seed
            self.done[key] = {
                "curve": [(cell.steps, loss, 0.5)], "processor_seconds": 1.0, "parameters": 10, "state_bytes": 40,
                "gradient_bytes": 0,
            }  # fmt: skip
        return self.done[key]


def test_the_grid_finds_every_best_rate_and_searches_from_the_nearest_cell():
    trainings = Trainings(1000)
    settled = walk(PLAN, trainings)
    assert [each.lr for each in settled] == [OPTIMUM[each.rule] for each in settled]
    assert [(each.cell, each.rule) for each in settled] == [(stage.cell, r) for stage in PLAN for r in stage.rules]
    assert [len(each.outcomes) for each in settled] == [2] * 7 + [1] * 5
    searched = [key for key in trainings.done if key[0] == LONGER]
    assert len(searched) == 3 * 5


def test_what_ends_early_goes_on_to_the_same_end():
    whole, parts = Trainings(1000), Trainings(5)
    expected, first = walk(PLAN, whole), walk(PLAN, parts)
    assert [each.rule for each in first] == [ADAMW]
    while parts.most < 1000:
        parts.most += 5
        found = walk(PLAN, parts)
        assert len(parts.done) <= parts.most
    assert found == expected
    assert parts.done == whole.done


def test_the_difference_to_adamw_is_by_seed():
    settled = walk(PLAN, Trainings(1000))
    tiger = next(each for each in settled if each.rule == TIGERS[0])
    assert gaps(tiger, settled) == pytest.approx([0.965, 0.965])
    without = [each for each in settled if each.rule != ADAMW]
    assert gaps(tiger, without) == []
    tables = cell_tables(settled)
    assert [table.row_count for table in tables] == [7, 5]
    renewals = list(gap_table(settled).columns[0].cells)
    assert renewals == sorted(renewals, key=float)
    assert len(renewals) == 8
    assert gap_table(without).row_count == 0


# --- one training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "lr", "states"), [(ADAMW, 4e-3, 8), (LAMB, 2e-2, 8), (LION, 8e-4, 4), (TIGERS[1], 2e-2, 4)]
)
def test_every_optimizer_learns_and_its_states_are_counted(dataset, rule, lr, states):
    cell = Cell(1, 64, 8, 24)
    outcome = train(dataset, cell, rule, lr, seed=0)
    assert outcome["state_bytes"] == states * outcome["parameters"]
    assert outcome["gradient_bytes"] == (0 if rule.name == "tiger" else 4) * outcome["parameters"]
    assert [step for step, _ in outcome["training"]] == list(range(1, 25))
    first, last = outcome["training"][0][1], outcome["training"][-1][1]
    assert last < first
    ((step, heldout, nsp),) = outcome["curve"]
    assert step == 24
    assert heldout < first
    assert 0 <= nsp <= 1
    assert outcome["processor_seconds"] > 0


def test_the_same_settings_give_the_same_bits_and_others_do_not(dataset):
    runs = [train(dataset, cell, TIGERS[0], lr, seed) for cell, lr, seed in (
        (CELL, 1e-2, 0), (CELL, 1e-2, 0), (CELL, 1e-2, 1), (CELL, 2e-2, 0), (Cell(1, 64, 8, 8, 0.3), 1e-2, 0),
    )]  # fmt: skip
    losses = [run["curve"][-1][1] for run in runs]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 4


def test_settings_tell_all_runs_apart(dataset):
    keys = [
        settings_of(dataset, cell, rule, lr, seed)
        for cell in (CELL, LONGER, Cell(2, 64, 8, 8), Cell(1, 128, 8, 8), Cell(1, 64, 16, 8), Cell(1, 64, 8, 8, 0.3))
        for rule in OPTIMUM
        for lr in (1e-3, 2e-3)
        for seed in (0, 1)
    ]
    assert len({json.dumps(key, sort_keys=True) for key in keys}) == 6 * 7 * 2 * 2


def test_a_training_that_comes_to_grief_ends_and_says_so(dataset, monkeypatch):
    class Broken(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.model = inner.model

        def forward(self, _):
            total = sum(p.sum() for p in self.model.parameters())
            return total * 0, torch.full((2, 3), math.nan)

    from benchmarks import optimizer_training

    make = optimizer_training.make_objective
    monkeypatch.setattr(optimizer_training, "make_objective", lambda *args, **sizes: Broken(make(*args, **sizes)))
    curve = train(dataset, CELL, ADAMW, 1e-3, 0)["curve"]
    assert curve[-1][0] == 1
    assert math.isnan(curve[-1][1])


def test_points_of_the_curve_are_halves():
    assert sorted(curve_points(1600)) == [100, 200, 400, 800, 1600]
    assert curve_points(150) == {150}


# --- rows -------------------------------------------------------------------------------------------------------------


def test_a_training_reads_no_row_twice_and_none_that_is_held_out(dataset, monkeypatch):
    from benchmarks import sample_batches

    read = []
    make = sample_batches.make_batch
    monkeypatch.setattr(
        sample_batches, "make_batch", lambda d, rows, *a, **k: read.append(rows) or make(d, rows, *a, **k)
    )
    number = dataset.num_training_rows // 8
    for _ in training_batches(dataset, number, 8, seed=2):
        pass
    rows = np.concatenate(read)
    assert len(set(rows.tolist())) == len(rows) == 8 * number
    assert rows.min() >= len(dataset.heldout_rows)
    assert rows.max() < len(dataset)
    with pytest.raises(ConfigError, match="none is read twice"):
        next(training_batches(dataset, number + 1, 8, seed=0))


def test_seeds_read_other_rows_with_other_masks(dataset):
    one, two = (next(training_batches(dataset, 1, 8, seed)) for seed in (0, 1))
    assert one["input_ids"].shape == two["input_ids"].shape
    assert not torch.equal(one["input_ids"], two["input_ids"])
    assert sum(len(batch["input_ids"]) for batch in heldout_batches(dataset, 4)) == min(4, len(dataset.heldout_rows))


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_prints_tables_of_what_the_file_holds(tmp_path, dataset):
    path, cell = tmp_path / "runs.json", Cell(2, 128, 8, 400)
    with open_runs(path, {}) as store:
        for lr, loss in ((1e-3, 6.6), (2e-3, 6.5), (4e-3, 6.7)):
            curve = [(100, 7.0, 0.5), (200, 6.8, 0.5), (400, loss, 0.5)]
            outcome = Trainings(1)(cell, ADAMW, lr, 0) | {"curve": curve}
            store.get(settings_of(dataset, cell, ADAMW, lr, 0), lambda outcome=outcome: outcome, Budget.of(1))
    done = CliRunner().invoke(app, ["grid", f"--samples={dataset.folders[0]}", f"--json={path}", "--minutes=0"])
    assert done.exit_code == 0, done.output
    assert "6.500" in done.output
    assert "0.002" in done.output
