"""The acceptance on a GPU, run on the CPU: every check passes on sound code, and fails where a fault is planted."""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.gpu import artifacts, environment, layers, losses, run_checks, speed, training, watched_training
from benchmarks.gpu.check import STAND_IN, Bench, Check, require, run_check
from benchmarks.gpu.checks import CHECKS
from benchmarks.gpu.made_up import make_samples
from kexue_train.cli import doctor
from kexue_train.model import modeling_roformer_v2 as modeling
from kexue_train.optim import accumulation
from kexue_train.optim.whole_tensors import WholeTensors
from kexue_train.train import micro_batch
from kexue_train.train.engine import TorchEngine

# The compiler looks at every tensor's; torch's profiler, compiler and export warn about themselves.
pytestmark = pytest.mark.filterwarnings("ignore")
BY_NAME = {check.name: check for check in CHECKS}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A CPU with tiny sizes."""
    out = tmp_path_factory.mktemp("gpu")
    return Bench(device=torch.device("cpu"), sizes=STAND_IN, out=out, samples=make_samples(out / "data", STAND_IN))


@pytest.fixture(autouse=True)
def without_other_processes(monkeypatch, request):
    """Tests marked gpu are collected elsewhere; DeepSpeed's import takes long, so its trainings are plain ones."""
    done = CompletedProcess([], 0, stdout="4 skipped, 300 deselected in 1.00s\n", stderr="")
    monkeypatch.setattr(environment.subprocess, "run", lambda *_, **__: done)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def plain_in_place_of_deepspeed(monkeypatch, disturb: Callable[[int, list[float]], list[float]]) -> None:
    """Let ``check_zero`` see trainings with these losses in place of its own."""

    def train(_bench: Bench, job: Any, _folder: Any) -> Any:
        found = disturb(job.train.compute.zero_stage, [5.0, 4.0, 3.0])
        return SimpleNamespace(losses=found, peak_bytes=1000, lines=lambda _: [{"parameters": 10}])

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(training, "train_apart", train)


def run(name: str, bench: Bench) -> Any:
    return run_check(replace(BY_NAME[name], packages=()), bench)


@pytest.mark.parametrize("name", BY_NAME)
def test_every_check_passes_on_a_stand_in(name, bench, monkeypatch):
    if name == "ZeRO":
        plain_in_place_of_deepspeed(monkeypatch, lambda _, found: found)
    outcome = run(name, bench)
    assert outcome.status == "passed", outcome.message
    json.dumps(outcome.figures)


def broken_doctor(monkeypatch) -> None:
    broken = [doctor.Check("memory", "failure", "there is none")]
    monkeypatch.setattr(environment.doctor, "diagnose", lambda **_: broken)


def failing_tests(monkeypatch) -> None:
    done = CompletedProcess([], 1, stdout="1 failed\n", stderr="")
    monkeypatch.setattr(environment.subprocess, "run", lambda *_, **__: done)


def attention_that_scales(monkeypatch) -> None:
    attend = modeling.sequence_attention
    monkeypatch.setattr(modeling, "sequence_attention", lambda *given: 1.1 * attend(*given))


def dropout_of_its_own(monkeypatch) -> None:
    attend, generator = modeling.sequence_attention, torch.Generator()

    def draw(*given: Any) -> torch.Tensor:
        result = attend(*given)
        return result * torch.bernoulli(torch.full(result.shape, 0.9), generator=generator) / 0.9

    monkeypatch.setattr(modeling, "sequence_attention", draw)


def no_rotation_under_autocast(monkeypatch) -> None:
    rotate = modeling.apply_rope
    monkeypatch.setattr(modeling, "apply_rope", lambda x, r: x if torch.is_autocast_enabled("cpu") else rotate(x, r))


def words_off_by_one(monkeypatch) -> None:
    score = losses.word_loss.linear_cross_entropy
    monkeypatch.setattr(losses.word_loss, "linear_cross_entropy", lambda h, w, labels: score(h, w, labels.roll(1)))


def a_fold_that_decays_twice(monkeypatch) -> None:
    class Wrong(WholeTensors):
        def fold(self, *given, is_first, **others):
            return super().fold(*given, is_first=is_first or True, **others)

    monkeypatch.setattr(accumulation, "choose_storage", lambda *given, **_: Wrong(*given[:2]))


def no_recomputation(monkeypatch) -> None:
    monkeypatch.setattr(layers, "enable_recompute", lambda *_: None)


def a_graph_per_layer(monkeypatch) -> None:
    def compile_each(encoder: Any, *, backend: str) -> None:
        for number, layer in enumerate(encoder.encoder.layer):
            layer.norm.eps += number * 1e-13
            layer.compile(backend=backend, dynamic=False)

    monkeypatch.setattr(layers, "compile_layers", compile_each)


def gradients_that_are_written_over(monkeypatch) -> None:
    both = layers.loss_and_gradients

    def replay(objective: Any, batch: Any) -> Any:
        loss, gradients = both(objective, batch)
        return loss, [gradient * 1.5 if objective.has_graphs else gradient for gradient in gradients]

    monkeypatch.setattr(layers, "loss_and_gradients", replay)


def a_wait_in_every_micro_step(monkeypatch) -> None:
    step = TorchEngine.micro_step

    def waits(self: Any, batch: Any) -> Any:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        return step(self, batch)

    monkeypatch.setattr(TorchEngine, "micro_step", waits)


def losses_that_rise(monkeypatch) -> None:
    step, count = TorchEngine.micro_step, iter(range(10**6))

    def rise(self: Any, batch: Any) -> Any:
        scores = step(self, batch).clone()
        scores[:, 0] *= 1 + 0.02 * next(count)
        return scores

    monkeypatch.setattr(TorchEngine, "micro_step", rise)


def a_stage_with_other_losses(monkeypatch) -> None:
    plain_in_place_of_deepspeed(monkeypatch, lambda stage, found: [x + 0.5 * (stage == 2) for x in found])


def nothing_to_go_on_with(monkeypatch) -> None:
    monkeypatch.setattr(training, "_interrupt", lambda *given: given[2])


def an_old_model_that_stays(monkeypatch) -> None:
    kept: list[Any] = []
    made = watched_training._Watcher.__init__

    def keep(self: Any, inner: Any, *others: Any) -> None:
        kept.append(inner)
        made(self, inner, *others)

    monkeypatch.setattr(watched_training._Watcher, "__init__", keep)


def memory_that_nobody_explains(monkeypatch) -> None:
    monkeypatch.setattr(micro_batch, "is_out_of_memory", lambda _: False)


def an_evaluation_that_differs(monkeypatch) -> None:
    evaluate, factors = artifacts.evaluate_masked_lm, iter((1.0, 1.1))

    def differ(*given: Any, **settings: Any) -> Any:
        found = evaluate(*given, **settings)
        return found.model_copy(update={"mlm_loss": found.mlm_loss * next(factors)})

    monkeypatch.setattr(artifacts, "evaluate_masked_lm", differ)


def far_from_the_peak(monkeypatch) -> None:
    monkeypatch.setattr(speed, "measured_rate", lambda *_: 1e30)


FAULTS = {
    "machine": (broken_doctor, "there is none"),
    "tests marked gpu": (failing_tests, "1 failed"),
    "attention": (attention_that_scales, "attention is off by 0.1"),
    "attention dropout": (dropout_of_its_own, "two runs from one seed differ"),
    "objective": (no_rotation_under_autocast, "bf16: a gradient is off"),
    "word loss": (words_off_by_one, "the word loss is off"),
    "optimizer kernels": (a_fold_that_decays_twice, "the kernels are off"),
    "recompute": (no_recomputation, "keeps no less than none"),
    "compile": (a_graph_per_layer, "2 graphs were compiled"),
    "cuda graphs": (gradients_that_are_written_over, "gradients are off by 0.5"),
    "host waits": (a_wait_in_every_micro_step, "the host waits for the device at"),
    "training": (losses_that_rise, "the loss went from"),
    "ZeRO": (a_stage_with_other_losses, "ZeRO 2: losses are off"),
    "kill and resume": (nothing_to_go_on_with, "the training began anew"),
    "spike": (an_old_model_that_stays, "the old model is kept"),
    "out of memory": (memory_that_nobody_explains, "alloc"),
    "export and evaluate": (an_evaluation_that_differs, "evaluation differs"),
    "speed": (far_from_the_peak, "of a matrix product's rate"),
}


def test_every_check_has_a_fault_that_it_finds():
    assert FAULTS.keys() == BY_NAME.keys()


@pytest.mark.parametrize("name", FAULTS)
def test_every_check_fails_on_a_planted_fault(name, bench, monkeypatch):
    plant, message = FAULTS[name]
    plant(monkeypatch)
    outcome = run(name, bench)
    assert outcome.status == "failed"
    assert message in outcome.message


def test_a_check_whose_package_is_missing_is_left_out_and_says_so(bench):
    check = Check(name="x", minutes=1, run=lambda _: {}, packages=("torch", "no_such_package"))
    outcome = run_check(check, bench)
    assert (outcome.status, outcome.message) == ("left out", "not installed: no_such_package")


def test_what_was_found_before_a_failure_is_kept(bench):
    def fail(_: Bench) -> dict[str, Any]:
        require(False, "wrong", {"seen": 1})
        return {}

    assert run_check(Check(name="x", minutes=1, run=fail), bench).figures == {"seen": 1}


class _Process:
    """Runs checks here and notes their time boxes."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.boxes = bench, []

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None: ...

    def run(self, check: Check, seconds: float) -> Any:
        self.boxes.append(seconds)
        return run_check(check, self.bench)


def test_boxes_share_the_time_and_results_are_written_after_every_check(bench, monkeypatch, tmp_path):
    process = _Process(replace(bench, out=tmp_path))
    monkeypatch.setattr(run_checks, "_Process", lambda _: process)
    written: list[int] = []
    file = tmp_path / "gpu.json"

    def look(_: Bench) -> dict[str, Any]:
        written.append(len(json.loads(file.read_text())["checks"]) if file.exists() else 0)
        return {}

    checks = [Check(name=name, minutes=minutes, run=look) for name, minutes in (("a", 1.0), ("b", 1.0), ("c", 2.0))]
    run_checks.run_all(checks, process.bench, time.monotonic() + 40)
    assert written == [0, 1, 2]
    assert process.boxes == pytest.approx([10, 40 / 3, 40], abs=2)
    assert [check["name"] for check in json.loads(file.read_text())["checks"]] == ["a", "b", "c"]


def test_names_of_checks_in_the_documents_are_those_that_run(repository):
    text = (repository / "docs" / "gpu.md").read_text(encoding="utf-8")
    table = text.split("## What is proven, and how")[1].split("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| ")][1:]
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row[-1])}
    assert named == BY_NAME.keys()


def test_make_gpu_runs_the_acceptance(repository):
    makefile = Path(repository / "Makefile").read_text(encoding="utf-8")
    assert "-m benchmarks.gpu --minutes $(MINUTES) --out $(OUT)" in makefile
