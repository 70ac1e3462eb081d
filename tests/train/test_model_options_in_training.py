"""Options of the attention are trained with, saved, resumed, exported and planned as the rest of the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM

from kexue_train.downstream.folder_code import may_run_code
from kexue_train.export.export_hf import export_hf
from kexue_train.foundation.errors import ConfigError
from kexue_train.model import RoFormerV2ForMaskedLM
from kexue_train.train import loop
from kexue_train.train.initial_weights import check_initial_weights
from kexue_train.train.job import TrainDir, read_samples
from tests.train.tiny_training import curve, final_tensors, make_config, same_bits, train_here

OPTIONS: dict[str, dict[str, Any]] = {
    "long inputs": {"attention_window": 6, "log_n_scale": 64},
    "log n": {"log_n_scale": 64},
    "grouped": {"attention": "grouped", "num_key_value_heads": 1},
    "latent": {"attention": "latent", "latent_size": 12},
    "linear": {"attention": "linear", "attention_probs_dropout_prob": 0.0},
}
_CODE = {"configuration_roformer_v2.py", "modeling_roformer_v2.py"}


@pytest.fixture(scope="module", params=OPTIONS.items(), ids=OPTIONS.keys())
def case(request, samples, tmp_path_factory) -> tuple[dict[str, Any], Path, Path]:
    """Options, the folder of a training with them that was stopped after step 3 and resumed, and one that was not."""
    options, folder, one_step = request.param[1], tmp_path_factory.mktemp("options"), loop.run_step

    def ask_to_stop(training, *others):
        step = one_step(training, *others)
        if step == 3:
            training.guards.stop.poll = lambda: (True, False)
        return step

    train_here(make_config(options), samples, folder / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "run_step", ask_to_stop)
        train_here(make_config(options), samples, folder / "cut")
    train_here(make_config(options), samples, folder / "cut")
    return options, folder / "cut", folder / "whole"


def test_a_resume_has_the_bits_of_a_training_that_was_not_stopped(case, trained) -> None:
    _, cut, whole = case
    assert len(curve(cut, "resume")) == 1
    assert same_bits(final_tensors(cut), final_tensors(whole))
    assert curve(cut, "train")[0]["loss"] != curve(trained, "train")[0]["loss"]


def test_the_exported_model_has_the_options_and_only_the_code_that_it_needs(case, tmp_path) -> None:
    options, cut, _ = case
    folder = tmp_path / "hf"
    export_hf(TrainDir(cut).checkpoints / "step-00000008", folder)
    variants = {"variants_roformer_v2.py"} if "attention" in options else set()
    assert {path.name for path in folder.glob("*.py")} == _CODE | variants
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert options.items() <= config.items()
    assert may_run_code(folder)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in card for name in _CODE | variants)
    ids = torch.arange(5, 25)[None]
    ours = RoFormerV2ForMaskedLM.from_pretrained(folder).eval()(ids).logits
    opened = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()
    assert torch.equal(opened(ids).logits, ours)
    opened.save_pretrained(tmp_path / "again")
    assert {path.name for path in (tmp_path / "again").glob("*.py")} == _CODE | variants
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "again", trust_remote_code=True).eval()
    assert torch.equal(again(ids).logits, ours)


def test_plain_and_other_models_are_open_in_one_process_in_any_order(case, trained, tmp_path) -> None:
    options, cut, _ = case
    folders = {name: tmp_path / name / "hf" for name in ("plain", "other")}
    for name, training in (("plain", trained), ("other", cut)):
        export_hf(TrainDir(training).checkpoints / "step-00000008", folders[name])
    for name in ("plain", "other", "plain"):
        model = AutoModelForMaskedLM.from_pretrained(folders[name], trust_remote_code=True)
        module = "variants" if name == "other" and "attention" in options else "modeling"
        assert type(model).__module__.endswith(f".{module}_roformer_v2")


def test_weights_of_another_attention_are_refused_and_a_window_may_come(samples, trained) -> None:
    weights, plain = TrainDir(trained).checkpoints / "step-00000008", make_config()
    (dataset,) = read_samples(samples, plain)
    check_initial_weights(weights, make_config({"attention_window": 8}).model, dataset)
    for options, message in (
        (OPTIONS["latent"], r"attention is 'softmax' there, model\.attention='latent' here; latent_size is None there"),
        (OPTIONS["log n"], r"log_n_scale is None there, model\.log_n_scale=64 here"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_initial_weights(weights, make_config(options).model, dataset)


def test_the_recipe_of_a_plain_model_is_that_of_earlier_releases() -> None:
    settings = make_config().recipe("samples").settings
    assert "attention" not in settings["model"]
    for name in ("log n", "linear"):
        changed = make_config(OPTIONS[name]).recipe("samples")
        assert "changed from" in changed.difference(make_config().recipe("samples"))


def test_what_training_would_compute_wrongly_is_refused_before_it_starts() -> None:
    with pytest.raises(ConfigError, match=r"attention=latent with recompute=selective"):
        make_config(OPTIONS["latent"], recompute="selective")
    with pytest.raises(ConfigError, match=r"attention=linear with compile=true"):
        make_config(OPTIONS["linear"], compile=True)
