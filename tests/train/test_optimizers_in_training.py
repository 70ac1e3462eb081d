"""Every optimizer of the configuration trains, resumes to the bit, and does under DeepSpeed what it does without."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch

from kexue_train.train.job import TrainDir
from tests.train.tiny_training import SECONDS, curve, final_tensors, make_config, same_bits, start_worker, train_here

CHOICES: dict[str, dict[str, Any]] = {
    "gradient": {"accumulate": "gradient"},
    "bf16": {"states": "bf16"},
    "lazy": {"embeddings": "lazy"},
    "hybrid": {"embeddings": "adamw"},
    "clipped": {"clip": {"norm": 0.1}, "gradient_keep": 0.7, "weissi": 0.01, "weissi_sparsity": 0.01},
    "sgdm": {"name": "sgdm", "lr": 0.3},
    "adamw": {"name": "adamw"},
    "lamb": {"name": "lamb", "accumulate": "gradient"},
    "lion": {"name": "lion", "accumulate": "gradient"},
    "cosine": {"schedule": {"warmup": 2, "cosine": 6}},
}


def config_of(choice: str, **train: Any) -> Any:
    if choice in ("lamb", "lion"):
        pytest.importorskip("pytorch_optimizer")
    precision = "bf16" if choice == "bf16" else "fp32"
    return make_config(optimizer=CHOICES[choice], precision=precision, **train)


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES)
def test_a_training_resumed_in_the_middle_has_the_bits_of_one_that_was_not(choice, samples, tmp_path, trained):
    config, whole, resumed = config_of(choice, keep_checkpoints=9), tmp_path / "whole", tmp_path / "resumed"
    train_here(config, samples, whole)
    shutil.copytree(whole, resumed)
    paths = TrainDir(resumed)
    (resumed / "manifest.json").unlink()
    for step in (6, 8):
        shutil.rmtree(paths.checkpoints / f"step-{step:08d}")
    train_here(config, samples, resumed)
    assert [line["step"] for line in curve(resumed, "resume")] == [4]
    assert same_bits(final_tensors(whole), final_tensors(resumed))
    assert not same_bits(final_tensors(whole), final_tensors(trained))  # the choice made a difference
    assert curve(whole)[-1]["mlm_loss"] < curve(whole)[0]["mlm_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["gradient", "adamw", "lion"])
def test_under_deepspeed_it_has_the_bits_of_plain_torch(choice, samples, tmp_path):
    pytest.importorskip("deepspeed")
    train_here(config_of(choice, steps=4), samples, tmp_path / "torch")
    # In a process of its own, since DeepSpeed knows one process group in its life.
    worker = start_worker(config_of(choice, steps=4, engine="deepspeed"), samples, tmp_path / "deepspeed")
    output, _ = worker.communicate(timeout=SECONDS)
    assert worker.returncode == 0, output
    assert same_bits(final_tensors(tmp_path / "torch", 4), final_tensors(tmp_path / "deepspeed", 4))


def test_bf16_states_take_half_the_room(samples, tmp_path):
    train_here(config_of("bf16", steps=2), samples, tmp_path)
    assert {tensor.dtype for tensor in final_tensors(tmp_path, 2).values()} == {torch.bfloat16}


def test_steps_with_a_gradient_that_is_not_finite_are_written_down_and_end_training(samples, tmp_path, monkeypatch):
    from kexue_train.foundation.errors import TrainingError
    from kexue_train.optim.whole_tensors import fold_tensor_

    def spoiled(*arguments: Any, number: int, **rest: Any) -> Any:
        return True if number == 1 else fold_tensor_(*arguments, number=number, **rest)

    monkeypatch.setattr("kexue_train.optim.whole_tensors.fold_tensor_", spoiled)
    with pytest.raises(TrainingError, match=r"NaN or infinite in 3 steps in a row up to step 3, in .*weight"):
        train_here(make_config(optimizer={"max_nonfinite_steps": 3}), samples, tmp_path)
    events = curve(tmp_path, "nonfinite")
    assert [(event["step"], event["in_a_row"]) for event in events] == [(1, 1), (2, 2), (3, 3)]
    assert all(list(event["tensors"].values()) == [1] for event in events)
