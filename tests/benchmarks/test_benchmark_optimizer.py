"""The benchmark of the optimizers: that windows do what they are timed for, and bytes and losses are what they say."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import optimizer_memory, optimizer_quality, optimizer_step
from benchmarks.encoder_models import OURS, SIZES
from kexue_train.foundation.errors import ConfigError
from tests.train.tiny_training import write_samples
from tests.train.warm_python import warm_python

CPU = torch.device("cpu")
VOCAB = 90


# --- step -------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=optimizer_step.CONTENDERS, ids=lambda contender: contender.title)
def contender(request):
    return request.param


def window_of(contender):
    torch.manual_seed(0)
    model = OURS.build(SIZES["tiny"], VOCAB, 16, 0.0).to(contender.dtype)
    return optimizer_step.Window(contender, model)


def test_a_window_moves_weights_once_against_the_gradients(contender):
    window = window_of(contender)
    before = [param.detach().clone() for param in window._params]
    assert window.seconds(3) > 0
    for param, start, gradient in zip(window._params, before, window._gradients, strict=True):
        change = param.detach() - start
        moved = change != 0  # bf16 weights mostly stay, on average they do not
        agrees = torch.sign(change)[moved] == -torch.sign(gradient)[moved]
        assert agrees.float().mean() > 0.95  # decay moves a few the other way
    assert all(param.grad is None for param in window._params)


def test_a_window_adds_up_its_micro_batches(contender):
    window = window_of(contender)
    window.seconds(3)
    state = window._optimizer.state
    share = 0.035 if contender is not optimizer_step.CONTENDERS[0] else 3 * 0.1  # their mean, or AdamW's sum
    tolerance = 2**-7 if contender.dtype == torch.bfloat16 else 1e-6  # of bf16, whose last bit is drawn
    for param, gradient in zip(window._params, window._gradients, strict=True):
        first = next(value for name, value in state[param].items() if name in ("momentum", "exp_avg"))
        torch.testing.assert_close(first, share * gradient, rtol=3 * tolerance, atol=1e-7)


def test_a_window_leaves_its_gradients_for_the_next(contender):
    window = window_of(contender)
    before = [gradient.clone() for gradient in window._gradients]
    window.seconds(3)
    assert all(map(torch.equal, window._gradients, before))


def test_bytes_touched_are_those_of_the_arithmetic():
    touched = [[c.bytes_touched(1, k) for k in (1, 8)] for c in optimizer_step.CONTENDERS]
    adamw = 4 * 7  # θ, g, m, v read; θ, m, v written
    tiger = [4 * 3 * k + 4 + 4 * 3 for k in (1, 8)]  # m, g read, m written; θ read; m, θ read, θ written
    assert touched == [[adamw, 7 * 4 * 3 + adamw], tiger, [t // 2 for t in tiger]]


# --- memory -----------------------------------------------------------------------------------------------------------


# Weights and states of fp32, and gradients of fp32 where they are kept.
@pytest.mark.parametrize(
    ("title", "kept"),
    [
        ("AdamW (torch, fused), autocast", 4 + 8 + 4),
        ("Lion (pytorch_optimizer), autocast", 4 + 4 + 4),
        ("AdamW in its moments, autocast", 4 + 8),
        ("Tiger, gradient, autocast", 4 + 4 + 4),
        ("Tiger, momentum, autocast", 4 + 4),
        ("Tiger, bf16 states", 2 + 2),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of libraries
def test_what_is_kept_is_what_the_states_add_up_to(title, kept):
    found = optimizer_memory.measure(title, SIZES["tiny"], VOCAB, 2, CPU)
    assert found.after_backward / found.parameters == pytest.approx(kept, abs=0.05)
    assert found.step_peak >= found.after_backward
    assert found.backward_peak >= found.after_backward + found.largest_gradient * (
        "gradient" not in title and kept < 13
    )


# --- quality ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("best", "tried"), [(0, 3), (1, 3), (2, 4), (-2, 5)])
def test_tuning_ends_where_both_neighbours_are_worse(best, tried):
    asked = set()

    def get(_contender, lr, _seed):
        power = math.log2(lr / 1e-3)
        asked.add(round(power))
        return SimpleNamespace(final=math.nan if power > 2 else (power - best) ** 2)

    start = optimizer_quality.Contender("tiger", "Tiger", 1e-3)
    assert optimizer_quality.tune(SimpleNamespace(get=get), start) == 1e-3 * 2.0**best
    assert {best - 1, best, best + 1} <= asked
    assert len(asked) == tried


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    samples = write_samples(tmp_path_factory.mktemp("corpus"))
    return optimizer_quality.Task(str(samples), layers=1, hidden=64, steps=8, curve_points=2)


@pytest.fixture
def by_name():
    return {contender.name: contender for contender in optimizer_quality.CONTENDERS}


def test_both_ways_to_accumulate_learn_the_same_and_better_than_nothing(task, by_name):
    runs = optimizer_quality.Runs(task, None, {})
    hidden, explicit = (runs.get(by_name[name], 8e-3, 0).curve for name in ("tiger", "tiger-gradient"))
    assert [step for step, _ in hidden] == [4, 8]
    # A sign may turn where a momentum is all but zero, so the same to three digits and not to the last.
    assert [loss for _, loss in hidden] == pytest.approx([loss for _, loss in explicit], abs=5e-3)
    assert hidden[1][1] < hidden[0][1]


def test_every_contender_trains(task, by_name):
    runs = optimizer_quality.Runs(task, None, {})
    for contender in by_name.values():
        curve = runs.get(contender, contender.lr or 8e-3, 1, 2e-3 if contender.name == "tiger-adamw" else 0.0).curve
        assert curve[1][1] < curve[0][1]


def test_runs_of_the_file_are_not_run_again(task, by_name, tmp_path):
    path = tmp_path / "runs.json"
    first = optimizer_quality.Runs(task, path, {}).get(by_name["adamw"], 2e-3, 0)
    again = optimizer_quality.Runs(task, path, {}).get(by_name["adamw"], 2e-3, 0)
    assert again.seconds == first.seconds
    assert [tuple(point) for point in again.curve] == first.curve
    other = optimizer_quality.Task(task.samples, steps=9)
    with pytest.raises(ConfigError, match="name another file"):
        optimizer_quality.Runs(other, path, {})


# --- the commands -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_steps_are_timed_and_written(tmp_path):
    found = run_command(tmp_path, "step", "--size=tiny", "--vocab=90", "--rounds=1", "--windows=1,2")
    assert [result["micro_batches"] for result in found["results"]] == [1, 1, 1, 2, 2, 2]
    assert all(len(result["seconds"]) == 1 and result["seconds"][0] > 0 for result in found["results"])


@pytest.mark.slow
def test_memory_of_all_optimizers_is_measured_and_written(tmp_path):
    found = run_command(tmp_path, "memory", "--size=tiny", "--vocab=90", "--accumulation=2")
    assert [result["title"] for result in found["results"]] == list(optimizer_memory.CONTENDERS)


@pytest.mark.slow
def test_quality_of_all_optimizers_is_compared_and_written(tmp_path):
    samples = write_samples(tmp_path)
    found = run_command(tmp_path, "quality", f"--samples={samples}", "--steps=10", "--seeds=2")
    names = {contender.name for contender in optimizer_quality.CONTENDERS}
    assert {(run["contender"], run["seed"]) for run in found["runs"]} == {
        (name, seed) for name in names for seed in (0, 1)
    }


def run_command(folder: Path, *arguments: str) -> dict:
    script, out = Path(__file__).parents[2] / "benchmarks" / "optimizer.py", folder / "figures.json"
    command = [warm_python(), str(script), *arguments, f"--json={out}"]
    subprocess.run(command, check=True, timeout=600, capture_output=True)
    return json.loads(out.read_text(encoding="utf-8"))
