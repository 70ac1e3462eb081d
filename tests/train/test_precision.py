"""``precision: auto``: measured once, the same on all ranks, kept by a resume, and the bits of what it chose."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kexue_train.foundation.errors import ConfigError
from kexue_train.train import precision
from kexue_train.train.job import TrainDir
from kexue_train.train.monitor.events import ProgressReporter
from kexue_train.train.precision import ChosenPrecision, bf16_share, choose_precision
from tests.free_port import free_port
from tests.train.test_events import Told
from tests.train.tiny_training import (
    SECONDS,
    SEQ_LEN,
    curve,
    final_tensors,
    make_config,
    rank_environment,
    same_bits,
    train_here,
)
from tests.train.warm_worker import WarmProcess

CPU = torch.device("cpu")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Makes the trial find this share."""

    def find(share: float) -> None:
        monkeypatch.setattr(precision, "bf16_share", lambda *_: share)

    return find


@pytest.fixture
def never_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*_: object) -> float:
        raise AssertionError("measured")

    monkeypatch.setattr(precision, "bf16_share", measure)


@pytest.mark.parametrize(("share", "name"), [(0.5, "bf16"), (1.2, "fp32")])
def test_auto_gives_the_bits_of_what_it_chose_given_by_hand(share, name, samples, tmp_path, measured, trained):
    measured(share)
    train_here(make_config(precision="auto"), samples, tmp_path / "auto")
    by_hand = trained
    if name == "bf16":
        by_hand = tmp_path / "hand"
        train_here(make_config(precision="bf16"), samples, by_hand)
        assert not same_bits(final_tensors(by_hand), final_tensors(trained))
    assert same_bits(final_tensors(tmp_path / "auto"), final_tensors(by_hand))
    start = curve(tmp_path / "auto", "start")[0]
    assert start["precision"] == name
    assert start["choice"] == (
        f"train.precision=auto: {name}, since a layer in bf16 takes {share:.2f} of the time of fp32 here"
    )
    assert curve(tmp_path / "auto") == curve(by_hand)


def test_a_resume_keeps_what_was_chosen_without_another_trial(samples, tmp_path, measured, request):
    out = tmp_path / "out"
    config = make_config(precision="auto", keep_checkpoints=9)
    measured(0.5)
    train_here(config, samples, out)
    whole, paths = final_tensors(out), TrainDir(out)
    (out / "manifest.json").unlink()
    for step in (6, 8):
        shutil.rmtree(paths.checkpoints / f"step-{step:08d}")
    request.getfixturevalue("never_measured")
    train_here(config, samples, out)
    resumed = curve(out, "resume")[0]
    assert (resumed["step"], resumed["precision"]) == (4, "bf16")
    assert "choice" not in resumed
    assert same_bits(final_tensors(out), whole)


def test_a_precision_that_is_named_is_taken_and_not_recorded(trained, never_measured):
    for name in ("fp32", "bf16"):
        config = make_config(precision=name)
        chosen = choose_precision(config.train, config.model, SEQ_LEN, CPU, None)
        assert chosen == ChosenPrecision(name)
        assert chosen.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[name]
    (state,) = (TrainDir(trained).checkpoints / "step-00000008").glob("trainer_state.json")
    assert "precision" not in json.loads(state.read_text())  # so old checkpoints and new ones are alike


def test_what_is_recorded_of_the_settings_is_auto():
    assert make_config(precision="auto").train.settings_of_result()["precision"] == "auto"


def test_bf16_states_need_bf16_by_name():
    with pytest.raises(ConfigError, match=r"states=bf16 needs train\.precision=bf16 .* got auto"):
        make_config(precision="auto", optimizer={"states": "bf16"})


def test_the_choice_is_told_in_one_line():
    told = Told()
    start = {"kind": "start", "step": 0, "precision": "bf16"}
    ProgressReporter(0, 100, told).report([start, {**start, "choice": "train.precision=auto: bf16, since"}])
    assert told.notes == ["train.precision=auto: bf16, since"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shares", "name", "slowest"), [(("0.4", "0.95"), "fp32", "0.95"), (("0.8", "0.3"), "bf16", "0.80")]
)
def test_ranks_that_measure_differently_agree_on_what_is_faster_for_all(shares, name, slowest, tmp_path):
    script, port = Path(__file__).with_name("measure_apart.py"), free_port()
    outputs = [tmp_path / str(rank) for rank in range(2)]
    ranks = [
        WarmProcess([script, output, *shares], rank_environment(rank, 2, port)) for rank, output in enumerate(outputs)
    ]
    said = [process.communicate(timeout=SECONDS)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], said
    chosen = {output.read_text() for output in outputs}
    assert len(chosen) == 1
    assert chosen.pop().startswith(f"{name}\ntrain.precision=auto: {name}, since a layer in bf16 takes {slowest} ")


def test_a_trial_takes_a_moment_and_draws_from_no_generator_of_others():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for attention in ({}, {"attention": "linear", "attention_probs_dropout_prob": 0.0}):
        assert bf16_share(make_config(model=attention).model, 2, SEQ_LEN, CPU) > 0
    assert torch.equal(torch.get_rng_state(), before)
