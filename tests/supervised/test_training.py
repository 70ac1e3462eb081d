"""The stage trains through worker, loop and checkpoints of pretraining, and keeps what those promise."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from kexue_train.batches.collate import make_batch
from kexue_train.batches.dataset import SampleDataset
from kexue_train.batches.mixed import MixedDataset
from kexue_train.metrics.file import read_metrics
from kexue_train.samples.mlm import MaskingRates
from kexue_train.train import engine
from kexue_train.train.faults.stop import Ending
from kexue_train.train.job import TrainDir
from tests.supervised.tiny_tasks import open_mix, prepare, section
from tests.train.tiny_training import curve, final_tensors, make_config, same_bits, train_by_ranks, train_here

STEPS = 6


def config(**changes):
    return make_config(
        **{
            "steps": STEPS,
            "micro_batch_size": 2,
            "checkpoint_every": 2,
            "keep_checkpoints": 9,
            "validate_every": 3,
            **changes,
        }
    )


def task_lines(out):
    return [line for line in read_metrics(TrainDir(out).metrics) if line["kind"] == "task"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, mix):
    out = tmp_path_factory.mktemp("trained") / "training"
    assert train_here(config(), mix, out) is Ending.FINISHED
    return out


def tasks_of_steps(mix, *, steps=STEPS, micro_batches=4, seed=7):
    data = open_mix(mix)
    return [
        [data.task_at(step * micro_batches + number, seed)[0] for number in range(micro_batches)]
        for step in range(steps)
    ]


def test_masked_words_alone_are_pretraining_bit_for_bit(samples, tasks, tmp_path):
    plain, mixed = tmp_path / "plain", tmp_path / "mixed"
    file = prepare(section(tasks, {"mlm": 1.0}), samples, tmp_path / "rows")
    train_here(config(), samples, plain)
    train_here(config(), file, mixed)
    assert same_bits(final_tensors(plain, STEPS), final_tensors(mixed, STEPS))
    assert curve(plain) == curve(mixed)


def test_masked_words_in_a_mix_read_the_rows_that_pretraining_reads(mix, samples):
    data, plain = open_mix(mix), SampleDataset(samples)
    numbers = [number for number in range(20) if data.task_at(number, 7)[0] == "mlm"]
    for own, number in enumerate(numbers):
        found = data.make_batch(number, 2, seed=7, rates=MaskingRates())
        rows, epochs = plain.rows_at(np.arange(2 * own, 2 * own + 2), 7)
        wanted = make_batch(plain, rows, epochs, seed=7)
        assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_a_head_without_a_micro_batch_in_a_step_rests(trained, mix):
    steps = tasks_of_steps(mix)[2:4]  # between the checkpoints of steps 2 and 4
    before, after = final_tensors(trained, 2), final_tensors(trained, 4)
    used = {task for step in steps for task in step}
    resting = {"sorted", "marked", "asked", "chosen"} - used
    assert resting, "choose another seed: every task has a micro-batch"
    assert used - {"mlm"}
    for name in before:
        task = name.partition("task_heads.")[2].partition("_head")[0]
        if task:
            assert torch.equal(before[name], after[name]) == (task in resting), name


def test_every_task_is_logged_with_what_it_trained_on_and_scored_on_held_out_rows(trained, mix):
    lines, data = task_lines(trained), open_mix(mix)
    for step, tasks in enumerate(tasks_of_steps(mix), 1):
        logged = {line["task"]: line for line in lines if line["step"] == step and line["split"] == "train"}
        assert logged.keys() == set(tasks) - {"mlm"}
        if "sorted" in logged:
            assert logged["sorted"]["task_labels"] == 2 * tasks.count("sorted")
    heldout = {line["task"]: line for line in lines if line["step"] == 3 and line["split"] == "heldout"}
    rows = {task.name: len(task.heldout_rows) for task in data.tasks}
    assert heldout.keys() == rows.keys()
    assert {name: line["task_labels"] for name, line in heldout.items() if name != "marked"} == {
        name: number for name, number in rows.items() if name != "marked"
    }
    assert all(0 <= line["task_accuracy"] <= 1 and line["task_loss"] > 0 for line in heldout.values())


class KilledError(RuntimeError):
    """Stands for a kill."""


def test_a_training_killed_within_a_step_ends_as_if_it_had_not_been(trained, mix, tmp_path, monkeypatch):
    out, done, micro_step = tmp_path / "training", [0], engine.TorchEngine.micro_step

    def die_in_step_four(self, batch):
        done[0] += 1
        if done[0] == 3 * 4 + 3:
            raise KilledError
        return micro_step(self, batch)

    monkeypatch.setattr(engine.TorchEngine, "micro_step", die_in_step_four)
    with pytest.raises(KilledError):
        train_here(config(), mix, out)
    monkeypatch.undo()
    assert train_here(config(), mix, out) is Ending.FINISHED
    assert same_bits(final_tensors(out, STEPS), final_tensors(trained, STEPS))
    states = [json.loads((TrainDir(run).checkpoints / f"step-{STEPS:08d}/trainer_state.json").read_text())
              for run in (out, trained)]  # fmt: skip
    assert states[0] == states[1]
    assert states[0]["recent_task_losses"].keys() == {"sorted", "marked", "asked", "chosen"}


@pytest.mark.slow
def test_two_ranks_train_what_one_trains(mix, tmp_path):
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    one, two = tmp_path / "one", tmp_path / "two"
    train_here(config(model=dropout), mix, one)
    train_by_ranks(config(model=dropout, num_workers=2), mix, two)
    found, wanted = final_tensors(two, STEPS), final_tensors(one, STEPS)
    assert found.keys() == wanted.keys()
    for name in wanted:
        if not name.startswith(("momentum", "square")):
            # A sign that another order of sums turns moves a weight by two steps.
            assert ((found[name] - wanted[name]).abs() > 1e-5).float().mean() < 0.01, name
    for first, second in zip(task_lines(one), task_lines(two), strict=True):
        assert first["task"] == second["task"]
        assert first["task_labels"] == second["task_labels"]
        assert first["task_loss"] == pytest.approx(second["task_loss"], rel=2e-3)


def test_processes_that_load_micro_batches_make_the_same(trained, mix, tmp_path):
    out = tmp_path / "training"
    train_here(config(steps=2, num_loader_workers=1, lr=2e-3), mix, out)
    assert same_bits(final_tensors(out, 2), final_tensors(trained, 2))


def test_the_data_of_a_mix_is_what_its_folders_say(mix):
    data = open_mix(mix)
    assert isinstance(data, MixedDataset)
    assert data.share_of == pytest.approx(
        {"mlm": 6 / 14, "sorted": 3 / 14, "marked": 2 / 14, "asked": 2 / 14, "chosen": 1 / 14}
    )
