"""Starting from the weights of another model: what is taken over, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kexue_train.foundation.artifacts import read_manifest
from kexue_train.foundation.errors import ArtifactError, ConfigError, StaleArtifactError
from kexue_train.train import loop
from kexue_train.train.initial_weights import check_initial_weights, load_initial_weights
from kexue_train.train.job import TrainDir, prepare, read_samples
from tests.train.tiny_training import curve, final_tensors, make_config, make_model, same_bits, train_here

WORDS = "roformer.embeddings.word_embeddings.weight"


@pytest.fixture
def weights(trained: Path, tmp_path: Path) -> Path:
    """A copy of the last checkpoint of the finished training."""
    return shutil.copytree(TrainDir(trained).checkpoints / "step-00000008", tmp_path / "weights")


def check(weights: Path, samples: Path, model: dict[str, object] | None = None) -> None:
    config = make_config(model)
    check_initial_weights(weights, config.model, read_samples(samples, config)[0])


def change_config(weights: Path, **values: object) -> None:
    path = weights / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_tensors(weights: Path, *, leave_out: str = "nothing", **tensors: torch.Tensor) -> None:
    found = {name: tensor for name, tensor in load_file(weights / "model.safetensors").items() if leave_out not in name}
    save_file(found | tensors, weights / "model.safetensors")


def test_training_starts_with_the_weights_and_a_fresh_momentum_and_warms_up_again(trained, weights, samples, tmp_path):
    out = tmp_path / "out"
    # Steps this small move nothing further than its rounding.
    train_here(make_config(init_from=str(weights), lr=1e-12), samples, out)
    first = curve(out, "train")[0]
    assert first["step"] == 1
    assert first["lr"] == pytest.approx(1e-12 / 4)
    started, given = final_tensors(out), final_tensors(trained)
    model = {name: tensor for name, tensor in given.items() if not name.startswith("momentum.")}
    assert all(torch.allclose(started[name], tensor, atol=1e-7) for name, tensor in model.items())
    assert first["loss"] < curve(trained, "train")[0]["loss"]


def test_the_momentum_of_the_checkpoint_is_not_read(weights, samples, tmp_path):
    for name in ("with", "without"):
        train_here(make_config(init_from=str(weights)), samples, tmp_path / name)
        (weights / "optimizer.safetensors").unlink(missing_ok=True)
    assert same_bits(final_tensors(tmp_path / "with"), final_tensors(tmp_path / "without"))


def test_a_resume_goes_on_from_the_trainings_own_checkpoint(weights, samples, tmp_path, monkeypatch):
    config, one_step = make_config(init_from=str(weights)), loop.run_step
    train_here(config, samples, tmp_path / "whole")

    def ask_to_stop(training, *others):
        step = one_step(training, *others)
        if step == 3:
            patch.setattr(training.guards.stop, "poll", lambda: (True, False))
        return step

    with monkeypatch.context() as patch:
        patch.setattr(loop, "run_step", ask_to_stop)
        train_here(config, samples, tmp_path / "out")
    train_here(config, samples, tmp_path / "out")
    assert len(curve(tmp_path / "out", "resume")) == 1
    assert same_bits(final_tensors(tmp_path / "out"), final_tensors(tmp_path / "whole"))
    assert curve(tmp_path / "out") == curve(tmp_path / "whole")


def test_the_weights_are_part_of_the_recipe_and_where_they_lie_is_not(weights, samples, tmp_path):
    paths = TrainDir(tmp_path / "out")
    prepare(make_config(init_from=str(weights)), samples, paths)
    moved = weights.rename(tmp_path / "moved")
    prepare(make_config(init_from=str(moved)), samples, paths)
    with pytest.raises(StaleArtifactError, match="'init_from' was rebuilt"):
        prepare(make_config(), samples, paths)
    change_tensors(moved, **{WORDS: load_file(moved / "model.safetensors")[WORDS] + 1})
    with pytest.raises(StaleArtifactError, match="'init_from' was rebuilt"):
        prepare(make_config(init_from=str(moved)), samples, paths)


def test_without_a_pair_head_it_starts_at_random_and_spare_rows_of_the_word_table_too(weights, samples):
    vocab = read_manifest(samples).statistics["vocab_size"]
    given = load_file(weights / "model.safetensors")
    change_tensors(weights, leave_out="next_sentence", **{WORDS: given[WORDS][:vocab].clone()})
    check(weights, samples)
    model, _ = make_model(vocab, seed=5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_initial_weights(weights, model)
    after = model.state_dict()
    assert torch.equal(after[WORDS][:vocab], given[WORDS][:vocab])
    assert torch.equal(after[WORDS][vocab:], before[WORDS][vocab:])
    heads = [name for name in after if name.startswith("cls.next_sentence.")]
    assert heads
    assert all(torch.equal(after[name], before[name]) for name in heads)
    assert all(torch.equal(after[name], given[name]) for name in given if name not in (WORDS, *heads))


def test_another_architecture_is_refused_with_every_number(weights, samples):
    with pytest.raises(ConfigError) as error:
        check(weights, samples, {"num_hidden_layers": 2, "intermediate_size": 64, "hidden_act": ["gelu", "linear"]})
    for text in (
        "num_hidden_layers is 1 there, model.num_hidden_layers=2 here",
        "intermediate_size is 48 there, model.intermediate_size=64 here",
        "hidden_act is 'relu' there",
    ):
        assert text in str(error.value)
    change_config(weights, rotary_base=500.0)
    with pytest.raises(ConfigError, match=r"rotary_base is 500\.0 there, rotary_base=10000\.0 here"):
        check(weights, samples)


def test_dropout_and_the_longest_sequence_may_be_others(weights, samples):
    check(weights, samples, {"hidden_dropout_prob": 0.0, "max_position_embeddings": 512, "init": "depth_2n"})


def test_another_vocabulary_is_refused_with_numbers_and_the_way_out(weights, samples):
    path = weights / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    pieces = tokenizer["model"]["vocab"]
    (first, a), (second, b) = [(piece, pieces[piece]) for piece in sorted(pieces, key=pieces.get)[20:22]]
    pieces[first], pieces[second] = b, a
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError) as error:
        check(weights, samples)
    for text in ("2 ids differ", f"such as {a}, {second!r} there and {first!r} here", "kexue tokenizer SHARDS --from"):
        assert text in str(error.value)


def test_too_small_a_word_table_is_refused(weights, samples):
    change_tensors(weights, **{WORDS: load_file(weights / "model.safetensors")[WORDS][:100].clone()})
    with pytest.raises(ConfigError, match=r"word table has 100 rows, the tokenizer of .* 160 pieces"):
        check(weights, samples)


def test_what_is_no_model_folder_is_refused_with_the_command_that_makes_one(weights, samples, tmp_path):
    with pytest.raises(ArtifactError, match=r"nowhere: holds no config\.json; .*kexue import-weights"):
        check(tmp_path / "nowhere", samples)
    change_config(weights, model_type="bert")
    with pytest.raises(ConfigError, match=r"model_type='bert', training starts from 'roformer_v2'"):
        check(weights, samples)
    (weights / "config.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"config\.json: cannot be read as JSON"):
        check(weights, samples)


def test_tensors_that_do_not_fit_are_named(weights, samples):
    change_tensors(weights, leave_out="intermediate.dense", extra=torch.zeros(2))
    model, _ = make_model(read_manifest(samples).statistics["vocab_size"])
    with pytest.raises(ArtifactError) as error:
        load_initial_weights(weights, model)
    assert "tensor extra has shape [2] there, None is needed" in str(error.value)
    assert "intermediate.dense.weight has shape None there, [48, 32] is needed" in str(error.value)


def test_torn_weights_are_named(weights, samples):
    (weights / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ArtifactError, match=r"model\.safetensors: .* cannot be read"):
        check(weights, samples)


def test_branches_that_grow_from_nothing_do_not_go_with_trained_weights(tmp_path):
    with pytest.raises(ConfigError, match=r"residual_ramp_steps=5 .* spoils the weights of init_from; drop one"):
        make_config(init_from=str(tmp_path), residual_ramp_steps=5)


def test_a_relative_path_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert make_config(init_from="weights").train.init_from == tmp_path / "weights"
