"""Portable checkpoints: written whole, read exactly, damaged ones passed over."""

from __future__ import annotations

import os

import pytest
import torch

from kexue_train.artifacts import read_manifest
from kexue_train.errors import ArtifactError
from kexue_train.progress import SILENT, Silent
from kexue_train.train import checkpoint as module
from kexue_train.train.checkpoint import TrainerState, latest_checkpoint, list_checkpoints, load_checkpoint
from tests.train.tiny_training import make_checkpoint, make_model


class Notes(Silent):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def vocab_size(samples):
    return read_manifest(samples).statistics["vocab_size"]


def _flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_weights_and_momenta_come_back_bit_for_bit(samples, tmp_path, vocab_size):
    path = make_checkpoint(tmp_path, samples, step=3)
    (saved, its_optimizer), (model, optimizer) = make_model(vocab_size, seed=3), make_model(vocab_size, seed=4)
    state = load_checkpoint(path, model, optimizer)
    assert state == TrainerState(step=3, micro_step=6, seed=7, tokens=300)
    assert optimizer.micro_step == 6
    for before, after in zip(saved.parameters(), model.parameters(), strict=True):
        assert torch.equal(before, after)
        assert torch.equal(its_optimizer.momentum(before), optimizer.momentum(after))


def test_equal_training_writes_equal_bytes(samples, tmp_path):
    first, second = (make_checkpoint(tmp_path / name, samples, step=3) for name in "ab")
    assert (first / "manifest.json").read_bytes() == (second / "manifest.json").read_bytes()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "trainer_state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_a_damaged_checkpoint_is_passed_over_with_a_note(samples, tmp_path, name, damage):
    good, torn = (make_checkpoint(tmp_path, samples, step=step) for step in (2, 4))
    if damage == "flipped":
        _flip_a_byte(torn / name)
        if name == "manifest.json":  # its last byte is a line break: damage a checksum instead
            text = (good / name).read_text()
            (torn / name).write_text(text)
    elif damage == "truncated":
        os.truncate(torn / name, (torn / name).stat().st_size // 2)
    else:
        (torn / name).unlink()
    progress = Notes()
    assert latest_checkpoint(tmp_path, progress) == good
    assert len(progress.notes) == 1
    assert "passed over" in progress.notes[0]
    assert torn.name in progress.notes[0]


def test_no_checkpoint_is_none(tmp_path):
    assert latest_checkpoint(tmp_path / "absent", SILENT) is None


def test_a_checkpoint_of_a_wider_model_names_tensor_and_shapes(samples, tmp_path, vocab_size):
    path = make_checkpoint(tmp_path, samples, step=1)
    model, optimizer = make_model(vocab_size, hidden_size=64)
    with pytest.raises(ArtifactError, match=r"'[a-z_.]+\w' has shape \([\d, ]*32[\d, ]*\), this model needs \([^)]*64"):
        load_checkpoint(path, model, optimizer)


def test_a_checkpoint_of_a_deeper_model_names_the_tensor(samples, tmp_path, vocab_size):
    path = make_checkpoint(tmp_path, samples, step=1, num_hidden_layers=2)
    with pytest.raises(ArtifactError, match=r"layer\.1\..* this model needs None"):
        load_checkpoint(path, *make_model(vocab_size))


def test_latest_names_a_whole_checkpoint_even_after_a_kill(samples, tmp_path, monkeypatch):
    make_checkpoint(tmp_path, samples, step=2)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for function in ("describe_files", "publish", "write_hf_folder", "save_file"):
        with monkeypatch.context() as patch:
            patch.setattr(module, function, killed)
            with pytest.raises(KeyboardInterrupt):
                make_checkpoint(tmp_path, samples, step=4)
        assert (tmp_path / "latest").read_text() == "step-00000002\n"
        assert latest_checkpoint(tmp_path, SILENT) == tmp_path / "step-00000002"
    make_checkpoint(tmp_path, samples, step=4)
    assert (tmp_path / "latest").read_text() == "step-00000004\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000002", "step-00000004"]


def test_only_the_newest_are_kept(samples, tmp_path):
    for step in (2, 4, 6, 100_000_000):
        make_checkpoint(tmp_path, samples, step=step, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-100000000", "step-00000006"]


def test_a_checkpoint_is_a_hugging_face_folder(samples, tmp_path, vocab_size):
    from transformers import AutoModelForPreTraining, AutoTokenizer

    path = make_checkpoint(tmp_path, samples, step=3)
    model = make_model(vocab_size, seed=3)[0].eval()
    loaded = AutoModelForPreTraining.from_pretrained(path, trust_remote_code=True).eval()
    ids = AutoTokenizer.from_pretrained(path)("The harbour was quiet.", return_tensors="pt")["input_ids"]
    assert torch.equal(loaded(ids).prediction_logits, model(ids).prediction_logits)
