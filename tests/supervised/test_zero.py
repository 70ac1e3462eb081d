"""ZeRO 1, 2 and 3 train a mix as plain torch does: all heads are called in one order, and unused ones rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kexue_train.metrics.file import read_metrics
from kexue_train.model import RoFormerV2ForPreTraining
from kexue_train.model.hf_folder import build_hf_config
from kexue_train.samples.mlm import MaskingRates
from kexue_train.train.data import heldout_batches, to_tensors
from kexue_train.train.faults.stop import Ending
from kexue_train.train.job import JobConfig, TrainDir
from kexue_train.train.objective import PretrainingObjective
from kexue_train.train.phases import plan_phases
from kexue_train.train.task_heads import add_task_layers, heads_of
from tests.free_port import free_port
from tests.supervised.tiny_tasks import open_mix, prepare, section
from tests.train.tiny_training import (
    SECONDS,
    curve,
    final_tensors,
    make_config,
    rank_environment,
    train_here,
)
from tests.train.warm_worker import WarmProcess

STEPS, MICRO_BATCHES, RANKS = 6, 4, 2
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TASKS = ("sorted", "marked", "asked", "chosen")
NO_GRADIENT = "task_heads.asked_head.bias"
"""A shift of all places' logits changes no softmax over them, so rounding alone decides its sign."""
FP32 = 1e-6
"""Sums of fp32 in another order; a step is 1e-3 and more."""


def config(scheme="min-norm", **changes):
    given = {
        "steps": STEPS,
        "micro_batch_size": 2,
        "checkpoint_every": 1,
        "keep_checkpoints": 9,
        "validate_every": 3,
        **changes,
    }
    values = make_config(STILL, **given).model_dump(mode="json")
    values["train"]["objective"]["weighting"] = {"scheme": scheme}
    return JobConfig.parse(values, where="test")


def make_objective(data, dropout=0.0, **options):
    torch.manual_seed(0)
    made = config()
    changes = dict.fromkeys(STILL, dropout)
    model = RoFormerV2ForPreTraining(build_hf_config(made.model.model_copy(update=changes), data.vocab_size))
    add_task_layers(model, data)
    return PretrainingObjective(model, heads_of(made.train.objective, data), **options)


def batch_of(data, task):
    number = next(number for number in range(100) if data.task_at(number, 7)[0] == task)
    return to_tensors(data.make_batch(number, 2, seed=7, rates=MaskingRates()))


@pytest.mark.parametrize("task", ["mlm", *TASKS])
def test_calling_all_heads_changes_nothing_but_that_every_parameter_gets_a_gradient(mix, task):
    data = open_mix(mix)
    batch, results = batch_of(data, task), []
    for calls_all_heads in (False, True):
        objective = make_objective(data, dropout=0.2, calls_all_heads=calls_all_heads)
        loss, sums = objective(batch)
        loss.backward()
        gradients = {name: param.grad for name, param in objective.model.named_parameters()}
        results.append((loss, sums, gradients))
    (loss, sums, alone), (same_loss, same_sums, gradients) = results
    assert torch.equal(loss, same_loss)
    assert torch.equal(sums, same_sums)
    trained = {id(param) for param in objective.trained_by(batch)}
    for name, param in objective.model.named_parameters():
        assert (alone[name] is not None) == (id(param) in trained), name
        assert torch.equal(gradients[name], torch.zeros_like(param) if alone[name] is None else alone[name]), name


def test_gradients_come_in_one_order_whatever_the_task(mix):
    data = open_mix(mix)
    objective, order, orders = make_objective(data, calls_all_heads=True), [], set()
    for name, param in objective.model.named_parameters():
        param.register_post_accumulate_grad_hook(lambda _, name=name: order.append(name))
    for task in ("mlm", *TASKS):
        objective(batch_of(data, task))[0].backward()
        orders.add(tuple(order))
        order.clear()
    assert len(orders) == 1


def test_layers_are_called_in_one_order_whatever_the_task_also_where_a_rank_has_nothing_to_score(mix):
    data, orders, order = open_mix(mix), set(), []
    objective = make_objective(data, calls_all_heads=True).eval()
    for name, module in objective.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: order.append(name))
    unlabelled = {name: value for name, value in batch_of(data, "asked").items() if not name.startswith("asked")}
    for batch in (*(batch_of(data, task) for task in ("mlm", *TASKS)), unlabelled):
        with torch.no_grad():
            _, sums = objective(batch)
        orders.add(tuple(order))
        order.clear()
    assert len(orders) == 1
    assert not sums.any()


@pytest.mark.parametrize("rank", [0, 1, 6])
def test_ranks_score_as_many_held_out_batches_of_a_mix(mix, monkeypatch, rank):
    numbers = []
    for number in (0, rank):
        monkeypatch.setattr("kexue_train.train.data.dist.get_rank", lambda number=number: number)
        monkeypatch.setattr("kexue_train.train.data.dist.get_world_size", lambda: 7)
        made = config(num_workers=1)
        (phase,) = plan_phases(made.train, [32], [2])
        numbers.append(len(heldout_batches(made, phase, open_mix(mix))))
    assert numbers[0] == numbers[1]


def train_plainly(mix, out, scheme="min-norm", **changes):
    assert train_here(config(scheme, **changes), mix, out) is Ending.FINISHED
    return out


@pytest.fixture(scope="module")
def plain(tmp_path_factory, mix):
    """One process without DeepSpeed."""
    return train_plainly(mix, tmp_path_factory.mktemp("plain") / "training")


CLIPPED = {"accumulate": "gradient", "clip": {"norm": 0.5}}


@pytest.fixture(scope="module")
def without_words(tmp_path_factory, samples, tasks):
    """A mix without masked words, whose heads no step trains."""
    shares = dict(zip(TASKS, (3, 2, 2, 1), strict=True))
    return prepare(section(tasks, shares), samples, tmp_path_factory.mktemp("without"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, mix, without_words) -> Path:
    """What two ranks have trained: a folder for each job."""
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("zero")

    def job(name, stage, samples=mix, micro_steps=None, scheme="min-norm", **changes):
        made = config(scheme, engine="deepspeed", zero_stage=stage, num_workers=RANKS, **changes)
        found = {"config": made.model_dump(mode="json"), "samples": str(samples), "out": str(folder / name)}
        return json.dumps(found | ({"micro_steps": micro_steps} if micro_steps else {}))

    jobs = [job(f"stage {stage}", stage) for stage in (1, 2, 3)]
    jobs += [
        job("clipped", 2, without_words, scheme="online", optimizer=CLIPPED),
        job("resumed", 3, micro_steps=3 * RANKS + 2),  # in the fourth step
        job("resumed", 1, micro_steps=RANKS + 2),  # in the fifth
    ]
    (folder / "jobs").write_text("\n".join(jobs), encoding="utf-8")
    script, port = Path(__file__).with_name("zero_rank.py"), free_port()
    ranks = [WarmProcess([script, folder / "jobs"], rank_environment(rank, RANKS, port)) for rank in range(RANKS)]
    outputs = [process.communicate(timeout=SECONDS)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0] * RANKS, outputs
    return folder


def assert_same(first, second):
    assert first.keys() == second.keys()
    names = [name for name in first if not name.endswith(NO_GRADIENT)]
    assert max((first[name] - second[name]).abs().max() for name in names) < FP32


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_ranks_make_the_steps_of_one_plain_process(folder, plain, stage):
    for step in range(1, STEPS + 1):
        assert_same(final_tensors(folder / f"stage {stage}", step), final_tensors(plain, step))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_heads_and_their_momentum_rest_bit_for_bit_in_steps_that_do_not_use_them(folder, mix, stage):
    data, rested = open_mix(mix), set()
    for step in range(1, STEPS):
        numbers = range(step * MICRO_BATCHES, (step + 1) * MICRO_BATCHES)
        used = {data.task_at(number, 7)[0] for number in numbers}
        before, after = (final_tensors(folder / f"stage {stage}", number) for number in (step, step + 1))
        for name in before:
            task = name.partition("task_heads.")[2].partition("_head")[0] or ("mlm" if "cls." in name else "")
            if task:
                assert torch.equal(before[name], after[name]) == (task not in used), (step, name)
                rested |= {task} - used
    assert rested >= set(TASKS), "choose another seed"


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_losses_scores_and_weights_are_those_of_one_plain_process(folder, plain, stage):
    ours, theirs = ([line for line in read_metrics(TrainDir(out).metrics) if line["kind"] == "task"]
                    for out in (folder / f"stage {stage}", plain))  # fmt: skip
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        assert [one[name] for name in ("step", "task", "split", "task_labels")] == [
            other[name] for name in ("step", "task", "split", "task_labels")
        ]
        for name in {"task_loss", "task_accuracy", "task_weight"} & one.keys():
            assert one[name] == pytest.approx(other[name], rel=1e-5)
    assert len({line["task_weight"] for line in ours if line["split"] == "train"}) > 3


@pytest.mark.slow
def test_a_mix_without_masked_words_with_accumulated_and_clipped_gradients(folder, without_words, tmp_path):
    plain = train_plainly(without_words, tmp_path / "plain", "online", optimizer=CLIPPED)
    ours, theirs = final_tensors(folder / "clipped", STEPS), final_tensors(plain, STEPS)
    assert_same(ours, theirs)
    first = final_tensors(folder / "clipped", 1)
    words = [name for name in ours if "cls." in name]
    assert words
    assert all(torch.equal(first[name], ours[name]) for name in words)


@pytest.mark.slow
def test_a_training_killed_within_steps_goes_on_at_other_stages_and_with_other_workers(folder, plain, mix):
    out = folder / "resumed"
    assert train_here(config(), mix, out) is Ending.FINISHED
    starts = curve(out, "start", "resume")
    assert [(line["zero_stage"], line["world_size"], line["step"]) for line in starts] == [
        (3, 2, 0),
        (1, 2, 3),
        (0, 1, 4),
    ]
    assert_same(final_tensors(out, STEPS), final_tensors(plain, STEPS))
