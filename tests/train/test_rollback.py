"""After a spike a training goes back and leaves rows out: the same, to the bit, as if left out by hand."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace

import pytest

from kexue_train.batches.loader import Plan
from kexue_train.foundation.errors import TrainingError
from kexue_train.metrics.failure import FailureKind, read_failure
from kexue_train.metrics.file import read_metrics
from kexue_train.model.linear_cross_entropy import LabelScores
from kexue_train.train import worker
from kexue_train.train.checkpoint import list_checkpoints
from kexue_train.train.engine import DeepSpeedEngine, TorchEngine
from kexue_train.train.faults.spikes import SkippedRows
from kexue_train.train.faults.stop import Ending
from kexue_train.train.job import TrainDir
from tests.train.tiny_training import curve, final_tensors, make_config, same_bits, train_here

_ACCUMULATION = 2


@pytest.fixture
def poison(monkeypatch):
    """``poison(steps, loss, engine)``: the micro-batches of these steps of an undisturbed run have another MLM loss."""
    poisoned: dict[int, float] = {}
    origin: dict[bytes, int] = {}
    make = Plan.make

    def make_and_remember(plan, dataset, number):
        batch = make(plan, dataset, number)
        untouched = make(replace(plan, rows_before=0), dataset, number + plan.rows_before // plan.micro_batch_size)
        assert (batch["input_ids"] == untouched["input_ids"]).all()
        origin[batch["input_ids"].tobytes()] = (number + plan.rows_before // plan.micro_batch_size) // _ACCUMULATION + 1
        return batch

    def prepare(steps, loss, engine=TorchEngine):
        micro_step = engine.micro_step

        def micro_step_with_poison(self, batch):
            sums = micro_step(self, batch).clone()
            step = origin[batch["input_ids"].numpy().tobytes()]
            if step in poisoned:
                mlm = LabelScores(*sums[0])
                mlm.loss.copy_(mlm.num_labels * poisoned[step])
            return sums

        poisoned.update(dict.fromkeys(steps, loss))
        monkeypatch.setattr(engine, "micro_step", micro_step_with_poison)

    monkeypatch.setattr(Plan, "make", make_and_remember)
    return prepare


def _train_without(steps: range, config, samples, out, monkeypatch) -> None:
    """Train with the batches of ``steps`` (from 1) left out by hand."""
    make = Plan.make
    first, gap = (steps.start - 1) * _ACCUMULATION, len(steps) * _ACCUMULATION
    with monkeypatch.context() as patch:
        patch.setattr(Plan, "make", lambda plan, data, n: make(plan, data, n + gap if n >= first else n))
        train_here(config, samples, out)


def _losses(out):
    return [(line["step"], line["loss"], line["lr"], line["tokens"]) for line in curve(out, "train")]


@pytest.mark.parametrize(
    ("spike_at", "loss", "steps"),
    [(7, float("nan"), 12), (7, float("inf"), 12), (3, float("nan"), 8), (27, 40.0, 30)],
    ids=["NaN", "infinity", "before any checkpoint", "jump"],
)
def test_a_spike_leaves_out_what_was_read_since_the_checkpoint(
    samples, tmp_path, monkeypatch, poison, spike_at, loss, steps
):
    config = make_config(steps=steps, checkpoint_every=4)
    last_good = (spike_at - 1) // 4 * 4
    _train_without(range(last_good + 1, spike_at + 1), config, samples, tmp_path / "by hand", monkeypatch)
    poison([spike_at], loss)
    assert train_here(config, samples, tmp_path / "out") is Ending.FINISHED
    assert same_bits(final_tensors(tmp_path / "out", steps), final_tensors(tmp_path / "by hand", steps))
    assert _losses(tmp_path / "out") == _losses(tmp_path / "by hand")
    [event] = [line for line in read_metrics(TrainDir(tmp_path / "out").metrics) if line["kind"] == "rollback"]
    assert (event["step"], event["spike_step"]) == (last_good, spike_at)
    assert event["left_out"] == [[last_good, 32, 8 * (spike_at - last_good)]]
    rows_per_epoch = next(iter(curve(tmp_path / "out", "start")))["rows_per_epoch"]
    last = curve(tmp_path / "out", "train")[-1]
    assert last["epoch"] * rows_per_epoch == pytest.approx(8 * (steps + spike_at - last_good))
    state = json.loads((list_checkpoints(TrainDir(tmp_path / "out").checkpoints)[0] / "trainer_state.json").read_text())
    assert [SkippedRows(*entry) for entry in state["left_out"]] == [SkippedRows(*event["left_out"][0])]


def test_two_spikes_one_after_the_other_leave_out_both(samples, tmp_path, monkeypatch, poison):
    config = make_config(steps=12, checkpoint_every=4)
    _train_without(range(5, 9), config, samples, tmp_path / "by hand", monkeypatch)
    poison([6, 8], float("nan"))  # 5 to 6 go; then step 6 reads the batch that was step 8's: 7 to 8 go, too
    train_here(config, samples, tmp_path / "out")
    assert same_bits(final_tensors(tmp_path / "out", 12), final_tensors(tmp_path / "by hand", 12))


def test_a_resume_after_a_rollback_still_leaves_out_the_rows(samples, tmp_path, monkeypatch, poison):
    config = make_config(steps=12, checkpoint_every=4)
    poison([6], float("nan"))
    train_here(config, samples, tmp_path / "whole")
    paths = TrainDir(tmp_path / "torn")
    with monkeypatch.context() as patch:
        patch.setattr("kexue_train.train.loop.StopRequest.poll", lambda _: ((paths.root / "metrics.jsonl").exists() and
            any(line["step"] == 9 for line in read_metrics(paths.metrics)), False))  # fmt: skip
        assert train_here(config, samples, paths.root) is Ending.STOPPED
    stopped_at = curve(paths.root, "stop")[0]["step"]
    assert 8 < stopped_at < 12
    assert train_here(config, samples, paths.root) is Ending.FINISHED
    assert [line["step"] for line in curve(paths.root, "resume")] == [4, stopped_at]  # the first is the rollback's
    assert same_bits(final_tensors(paths.root, 12), final_tensors(tmp_path / "whole", 12))
    assert _losses(paths.root) == _losses(tmp_path / "whole")


def test_the_model_before_a_rollback_is_gone_when_the_next_is_built(samples, tmp_path, monkeypatch, poison):
    build, models = worker.build_training, []

    def build_and_look(*args):
        assert [model() for model in models] == [None] * len(models)
        training, notes = build(*args)
        models.append(weakref.ref(training.setup.objective.model))
        return training, notes

    monkeypatch.setattr(worker, "build_training", build_and_look)
    poison([3], float("nan"))
    train_here(make_config(steps=4, checkpoint_every=2), samples, tmp_path / "out")
    assert len(models) == 2


def test_spikes_without_end_are_an_error_that_says_so(samples, tmp_path, poison):
    poison(range(6, 40), float("nan"))
    config = make_config(steps=12, checkpoint_every=4, max_rollbacks=3)
    with pytest.raises(TrainingError, match=r"the loss is nan.*after 3 rollbacks.*train\.faults\.max_rollbacks"):
        train_here(config, samples, tmp_path / "out")
    assert list_checkpoints(TrainDir(tmp_path / "out").checkpoints)[0].name == "step-00000004"


def test_a_policy_of_stop_keeps_the_checkpoint_before(samples, tmp_path, poison):
    poison([8], float("nan"))  # a checkpoint is due there
    with pytest.raises(TrainingError, match=r"step 8: the loss is nan.*train\.faults\.on_spike=stop"):
        train_here(make_config(steps=12, checkpoint_every=4, on_spike="stop"), samples, tmp_path / "out")
    failure = read_failure(TrainDir(tmp_path / "out").failure)
    assert failure is not None
    assert (failure.kind, failure.step, failure.value) == (FailureKind.LOSS_NONFINITE, 8, "nan")
    assert [path.name for path in list_checkpoints(TrainDir(tmp_path / "out").checkpoints)] == ["step-00000004"]


def test_a_jump_can_be_ignored_but_no_number_cannot(samples, tmp_path, poison):
    config = make_config(steps=30, checkpoint_every=30, on_spike="ignore")
    poison([27], 40.0)
    assert train_here(config, samples, tmp_path / "jump") is Ending.FINISHED
    poison([27], float("nan"))
    with pytest.raises(TrainingError, match=r"step 27: the loss is nan.*train\.faults\.on_spike=ignore"):
        train_here(config, samples, tmp_path / "nan")


@pytest.mark.slow
def test_a_rollback_with_deepspeed_gives_the_bits_of_plain_torch(samples, tmp_path, poison):
    pytest.importorskip("deepspeed")
    for name, engine in (("torch", TorchEngine), ("deepspeed", DeepSpeedEngine)):
        poison([7], float("nan"), engine)
        train_here(make_config(steps=12, checkpoint_every=4, engine=name), samples, tmp_path / name)
    assert same_bits(final_tensors(tmp_path / "torch", 12), final_tensors(tmp_path / "deepspeed", 12))
    assert len(curve(tmp_path / "deepspeed", "rollback")) == 1
