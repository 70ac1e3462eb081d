"""A weighting multiplies the losses of micro-batches, is part of the state, and is told in the metrics."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from kexue_train.foundation.errors import ConfigError
from kexue_train.model.config import ModelConfig
from kexue_train.model.hf_folder import build_hf_config
from kexue_train.model.modeling_roformer_v2 import RoFormerV2ForPreTraining
from kexue_train.train import engine
from kexue_train.train.config import ObjectiveConfig
from kexue_train.train.data import to_tensors
from kexue_train.train.faults.stop import Ending
from kexue_train.train.job import TrainDir
from kexue_train.train.objective import PretrainingObjective
from kexue_train.train.task_heads import add_task_layers, heads_of
from kexue_train.train.weighting.constant_units import ConstantUnits
from tests.supervised.test_training import STEPS, KilledError, config, task_lines
from tests.supervised.tiny_tasks import open_mix
from tests.train.tiny_training import MODEL, final_tensors, same_bits, train_here


def weighted(scheme, **changes):
    plain = config(**changes)
    objective = ObjectiveConfig.parse({"weighting": {"scheme": scheme}}, where="test")
    return plain.model_copy(update={"train": plain.train.model_copy(update={"objective": objective})})


def test_a_loss_is_multiplied_in_training_and_not_in_validation(mix):
    data = open_mix(mix)
    torch.manual_seed(0)
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = RoFormerV2ForPreTraining(build_hf_config(ModelConfig(**MODEL, **dropout), data.vocab_size))
    add_task_layers(model, data)
    objective = PretrainingObjective(model, heads_of(ObjectiveConfig(), data))
    batch = to_tensors(data.tasks[0].make_batch(np.arange(4)))
    plain, sums = objective(batch)
    objective.weights = ConstantUnits("prior", dict.fromkeys(data.names, 4.0))
    loss, same = objective(batch)
    assert loss.item() == pytest.approx(plain.item() * objective.weights.weight("sorted", plain), rel=1e-6)
    assert torch.equal(sums, same)
    assert objective.eval()(batch)[0] == plain


@pytest.mark.parametrize("scheme", ["online", "min-norm"])
def test_a_weighted_training_killed_within_a_step_ends_as_if_it_had_not_been(scheme, mix, tmp_path, monkeypatch):
    whole, killed, done = tmp_path / "whole", tmp_path / "killed", [0]
    job, micro_step = weighted(scheme), engine.TorchEngine.micro_step
    assert train_here(job, mix, whole) is Ending.FINISHED

    def die_in_step_four(self, batch):
        done[0] += 1
        if done[0] == 3 * 4 + 3:
            raise KilledError
        return micro_step(self, batch)

    monkeypatch.setattr(engine.TorchEngine, "micro_step", die_in_step_four)
    with pytest.raises(KilledError):
        train_here(job, mix, killed)
    monkeypatch.undo()
    train_here(job, mix, killed)
    assert same_bits(final_tensors(killed, STEPS), final_tensors(whole, STEPS))
    name = f"step-{STEPS:08d}/trainer_state.json"
    states = [json.loads((TrainDir(out).checkpoints / name).read_text()) for out in (killed, whole)]
    assert states[0] == states[1]
    assert states[0]["weighting"]["scheme"] == scheme
    assert all(line["task_weight"] > 0 for line in task_lines(whole)[-4:] if line["split"] == "train")


def test_a_weighting_without_labelled_tasks_is_refused(samples, tmp_path):
    with pytest.raises(ConfigError, match=r"train.objective.weighting has no effect"):
        train_here(weighted("online"), samples, tmp_path / "out")


def test_a_plain_weighting_is_not_recorded_so_that_older_folders_go_on():
    assert "weighting" not in config().train.settings_of_result()
    assert weighted("online").train.settings_of_result()["weighting"]["scheme"] == "online"
