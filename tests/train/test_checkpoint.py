"""Portable checkpoints: written whole, read exactly, damaged ones passed over and named."""

from __future__ import annotations

import errno
import os
import subprocess

import pytest
import torch

from kexue_train.foundation.artifacts import partial_dir, read_manifest
from kexue_train.foundation.errors import ArtifactError
from kexue_train.foundation.progress import SILENT, Silent
from kexue_train.train.checkpoint import (
    CheckpointFolder,
    FullTensors,
    Retention,
    TrainerState,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    read_checkpoint,
)
from kexue_train.train.checkpoint import format as module
from tests.train.tiny_training import make_checkpoint, make_model

FILES = (
    "config.json",
    "configuration_roformer_v2.py",
    "manifest.json",
    "model.safetensors",
    "modeling_roformer_v2.py",
    "optimizer.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "trainer_state.json",
    "vocab.txt",
)


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
    if path.name == "manifest.json":  # in a checksum: a flip in the version that wrote it would do no harm
        content[content.index(b"xxh3_128:") + 9] ^= 1
    else:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "flipped": _flip_a_byte,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "missing": lambda path: path.unlink(),
}


def test_weights_and_momenta_come_back_bit_for_bit(samples, tmp_path, vocab_size):
    path = make_checkpoint(tmp_path, samples, step=3)
    (saved, its_optimizer), (model, optimizer) = make_model(vocab_size, seed=3), make_model(vocab_size, seed=4)
    state, weights, momenta = read_checkpoint(path)
    FullTensors.of(model, optimizer).overwrite(weights, momenta)
    assert state == TrainerState(step=3, micro_step=6, seed=7, tokens=300)
    for before, after in zip(saved.parameters(), model.parameters(), strict=True):
        assert torch.equal(before, after)
        assert torch.equal(its_optimizer.momentum(before), optimizer.momentum(after))


def test_a_state_with_all_it_may_hold_comes_back(samples, tmp_path, monkeypatch):
    path = make_checkpoint(tmp_path, samples, step=3)
    state = TrainerState(step=3, left_out=((2, 128, 512),), recent_losses=(5.5, 5.25))
    file = path / "trainer_state.json"
    file.write_text(module.json.dumps(module.asdict(state)))
    assert read_checkpoint(path)[0] == state


def test_equal_training_writes_equal_bytes(samples, tmp_path):
    first, second = (make_checkpoint(tmp_path / name, samples, step=3) for name in "ab")
    assert (first / "manifest.json").read_bytes() == (second / "manifest.json").read_bytes()


def test_the_folder_holds_these_files(samples, tmp_path):
    found = {path.name for path in make_checkpoint(tmp_path, samples, step=1).iterdir()}
    assert found == set(FILES)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_any_damage_is_named_and_the_checkpoint_before_is_used(samples, tmp_path, name, damage):
    good, torn = (make_checkpoint(tmp_path, samples, step=step) for step in (2, 4))
    DAMAGES[damage](torn / name)
    progress = Notes()
    assert latest_checkpoint(tmp_path, progress) == good
    assert (tmp_path / "latest").read_text() == f"{good.name}\n"
    [note] = progress.notes
    assert "passed over" in note
    assert f"{torn.name}/{name}" in note or (name == "manifest.json" and torn.name in note)


def test_a_manifest_with_any_bit_flipped_never_brings_other_tensors(samples, tmp_path):
    """Flips that go unnoticed are in what resuming does not read: the version, the seed's copy, white space."""
    make_checkpoint(tmp_path, samples, step=2)
    manifest = make_checkpoint(tmp_path, samples, step=4) / "manifest.json"
    whole = manifest.read_bytes()
    used = whole.index(b'"files"')
    end = whole.index(b'"rows_checksum"')
    for position in range(used, end, 7):
        if whole[position : position + 1].isspace():
            continue
        manifest.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        assert latest_checkpoint(tmp_path, SILENT).name == "step-00000002", (
            position,
            whole[position - 20 : position + 9],
        )


@pytest.mark.parametrize("content", ["step-00000099\n", "", "nonsense"])
def test_a_pointer_to_nothing_is_mended(samples, tmp_path, content):
    path = make_checkpoint(tmp_path, samples, step=2)
    (tmp_path / "latest").write_text(content)
    assert latest_checkpoint(tmp_path, SILENT) == path
    assert (tmp_path / "latest").read_text() == "step-00000002\n"


def test_no_checkpoint_is_none(tmp_path):
    assert latest_checkpoint(tmp_path / "absent", SILENT) is None


def test_if_all_are_damaged_training_does_not_begin_anew_in_silence(samples, tmp_path):
    for step in (2, 4):
        (make_checkpoint(tmp_path, samples, step=step) / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"every checkpoint is damaged, the newest so: .*step-00000004"):
        latest_checkpoint(tmp_path, SILENT)


def test_a_damaged_newer_one_does_not_count_among_the_newest(samples, tmp_path):
    for step in (2, 4):
        make_checkpoint(tmp_path, samples, step=step, keep=2)
    (tmp_path / "step-00000004" / "model.safetensors").unlink()
    make_checkpoint(tmp_path, samples, step=3, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000003", "step-00000002"]


def test_a_checkpoint_of_a_wider_model_names_tensor_and_shapes(samples, tmp_path, vocab_size):
    path = make_checkpoint(tmp_path, samples, step=1)
    model, _ = make_model(vocab_size, hidden_size=64)
    with pytest.raises(ArtifactError, match=r"'[a-z_.]+\w' has shape \([\d, ]*32[\d, ]*\), this model needs \([^)]*64"):
        load_checkpoint(path, model)


def test_a_checkpoint_of_a_deeper_model_names_the_tensor_and_changes_nothing(samples, tmp_path, vocab_size):
    _, weights, momenta = read_checkpoint(make_checkpoint(tmp_path, samples, step=1, num_hidden_layers=2))
    model, optimizer = make_model(vocab_size)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ArtifactError, match=r"layer\.1\..* this model needs None"):
        FullTensors.of(model, optimizer).overwrite(weights, momenta)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_latest_names_a_whole_checkpoint_even_after_a_kill(samples, tmp_path, monkeypatch):
    make_checkpoint(tmp_path, samples, step=2)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for function in ("describe_files", "publish", "write_hf_folder", "save_file", "sync_files"):
        with monkeypatch.context() as patch:
            patch.setattr(module, function, killed)
            with pytest.raises(KeyboardInterrupt):
                make_checkpoint(tmp_path, samples, step=4)
        assert (tmp_path / "latest").read_text() == "step-00000002\n"
        assert latest_checkpoint(tmp_path, SILENT) == tmp_path / "step-00000002"
    make_checkpoint(tmp_path, samples, step=4)
    assert (tmp_path / "latest").read_text() == "step-00000004\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000002", "step-00000004"]


def test_what_a_kill_left_half_done_is_cleared(samples, tmp_path):
    path = make_checkpoint(tmp_path, samples, step=2)
    for name in (".step-00000004.partial", ".step-00000001.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    CheckpointFolder(tmp_path, Retention(2))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["latest", path.name]


@pytest.mark.parametrize("function", ["describe_files", "write_hf_folder", "save_file", "sync_files", "publish"])
def test_what_a_full_disk_leaves_is_removed(samples, tmp_path, monkeypatch, function):
    make_checkpoint(tmp_path, samples, step=2)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, function, full)
    with pytest.raises(OSError, match="No space left"):
        make_checkpoint(tmp_path, samples, step=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000002"]


@pytest.mark.slow
@pytest.mark.parametrize("kibibytes", [16, 64, 256])
def test_a_really_full_file_system_leaves_nothing_and_is_an_os_error(samples, tmp_path, kibibytes):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        with pytest.raises(OSError, match=r"No space left|os error 28"):
            make_checkpoint(disk, samples, step=4, hidden_size=128)
        assert not partial_dir(disk / "step-00000004").exists()
        assert list_checkpoints(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_only_the_newest_are_kept(samples, tmp_path):
    for step in (2, 4, 6, 100_000_000):
        make_checkpoint(tmp_path, samples, step=step, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-100000000", "step-00000006"]


def test_the_best_is_named_and_stays(samples, tmp_path):
    for step, loss in ((2, 5.0), (4, 3.0), (6, None), (8, 4.0), (10, float("nan"))):
        make_checkpoint(tmp_path, samples, step=step, loss=loss, keep=1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000010", "step-00000004"]
    assert (tmp_path / "best").read_text() == "step-00000004\n"


def test_one_that_is_being_read_is_removed_only_afterwards(samples, tmp_path):
    folder = CheckpointFolder(tmp_path, Retention(1))
    old, new = (make_checkpoint(tmp_path, samples, step=step) for step in (2, 4))
    with folder.hold(old) as is_there:
        folder.admit(new)
        assert is_there
        assert old.exists()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000004"]
    with folder.hold(new):
        pass
    assert new.exists()
    with folder.hold(old) as is_there:
        assert not is_there


def test_a_checkpoint_is_a_hugging_face_folder(samples, tmp_path, vocab_size):
    from transformers import AutoModelForPreTraining, AutoTokenizer

    path = make_checkpoint(tmp_path, samples, step=3)
    model = make_model(vocab_size, seed=3)[0].eval()
    loaded = AutoModelForPreTraining.from_pretrained(path, trust_remote_code=True).eval()
    ids = AutoTokenizer.from_pretrained(path)("The harbour was quiet.", return_tensors="pt")["input_ids"]
    assert torch.equal(loaded(ids).prediction_logits, model(ids).prediction_logits)
