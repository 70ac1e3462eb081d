"""Saving in the background: the bits of the moment, one at a time, and errors that surface."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest
import torch

from kexue_train.foundation.artifacts import read_manifest
from kexue_train.foundation.errors import TrainingError
from kexue_train.train.checkpoint import (
    CheckpointFolder,
    CheckpointWriter,
    Events,
    Retention,
    TrainerState,
    list_checkpoints,
    read_checkpoint,
)
from kexue_train.train.checkpoint import writer as module
from kexue_train.train.checkpoint.writer import HostCopy
from tests.train.tiny_training import make_checkpoint, make_engine, make_model, make_recipe, same_bits


class Saver:
    """A writer and the model it saves."""

    def __init__(self, folder: Path, samples: Path, seed: int = 3) -> None:
        self.model, self.optimizer = make_model(read_manifest(samples).statistics["vocab_size"], seed=seed)
        self.engine = make_engine(self.model, self.optimizer)
        rules, recipe = Retention(9), make_recipe(samples)
        folder.mkdir(exist_ok=True)
        self.writer = CheckpointWriter(
            CheckpointFolder(folder, rules), recipe=recipe, tokenizer=samples / "tokenizer", events=Events()
        )

    def save(self, step: int) -> None:
        state = TrainerState(step=step, micro_step=2 * step, seed=7, tokens=100 * step)
        self.writer.save(self.model, *self.engine.full_tensors(), state)

    def kinds(self) -> list[tuple[str, int]]:
        return [(event.kind, event.step) for event in self.writer.take_events()]


@pytest.fixture
def saver(samples, tmp_path):
    saver = Saver(tmp_path / "checkpoints", samples)
    with saver.writer:
        yield saver


@pytest.fixture
def gate(monkeypatch):
    """Holds every write until it is set."""
    gate, save = threading.Event(), module.save_checkpoint

    def wait_and_save(*args, **kwargs):
        gate.wait()
        return save(*args, **kwargs)

    monkeypatch.setattr(module, "save_checkpoint", wait_and_save)
    yield gate
    gate.set()


def _fail(monkeypatch, failures: int) -> None:
    """Let so many writes fail as on a full disk."""
    left, save = [None] * failures, module.save_checkpoint

    def save_if_there_is_room(*args, **kwargs):
        if left:
            left.pop()
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(*args, **kwargs)

    monkeypatch.setattr(module, "save_checkpoint", save_if_there_is_room)


def test_what_is_written_is_the_moment_of_the_call_to_the_byte(saver, samples, tmp_path, gate):
    expected = make_checkpoint(tmp_path / "synchronous", samples, step=3)
    saver.save(3)
    with torch.no_grad():
        for parameter in saver.model.parameters():  # training goes on before anything is written
            parameter.add_(1)
            saver.optimizer.momentum(parameter).mul_(-2)
    gate.set()
    saver.writer.finish()
    written = tmp_path / "checkpoints" / expected.name
    assert {path.name for path in written.iterdir()} == {path.name for path in expected.iterdir()}
    for path in expected.iterdir():
        assert (written / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_later_checkpoint_holds_later_bits(saver, tmp_path):
    tensors = []
    for step in (1, 2):
        with torch.no_grad():
            for parameter in saver.model.parameters():
                parameter.add_(step)
        tensors.append({name: tensor.clone() for name, tensor in saver.engine.full_tensors()[0].items()})
        saver.save(step)
    saver.writer.finish()
    for step in (1, 2):
        _, weights, _ = read_checkpoint(tmp_path / "checkpoints" / f"step-{step:08d}")
        assert same_bits(weights, tensors[step - 1])


def test_save_returns_before_anything_is_written_and_the_next_waits(saver, tmp_path, gate):
    saver.save(1)
    assert list_checkpoints(tmp_path / "checkpoints") == []
    second = threading.Thread(target=saver.save, args=(2,))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    gate.set()
    second.join()
    assert (tmp_path / "checkpoints" / "latest").read_text() in ("step-00000001\n", "step-00000002\n")
    saver.writer.finish()
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000002\n"


def test_leaving_by_an_error_still_writes_the_one_in_hand(samples, tmp_path):
    saver = Saver(tmp_path / "checkpoints", samples)

    def train() -> None:
        with saver.writer:
            saver.save(5)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == ["step-00000005"]


def test_a_full_disk_is_said_and_the_next_interval_tries_again(saver, tmp_path, monkeypatch):
    _fail(monkeypatch, 2)
    for step in (2, 4, 6):
        saver.save(step)
    saver.writer.finish()
    events = saver.writer.take_events()
    kinds = ["checkpoint_failed", "checkpoint_failed", "checkpoint_saved"]
    assert [(event.kind, event.step) for event in events] == list(zip(kinds, (2, 4, 6), strict=True))
    assert [event.values.get("failures_in_a_row") for event in events] == [1, 2, None]
    assert "No space left" in events[0].values["reason"]
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == ["step-00000006"]


def test_three_failures_in_a_row_stop_training_with_the_reason(saver, monkeypatch):
    _fail(monkeypatch, 9)
    for step in (2, 4, 6):
        saver.save(step)
    with pytest.raises(TrainingError, match=r"3 checkpoints in a row .*No space left.*make room.*same command"):
        saver.save(8)
    with pytest.raises(TrainingError, match="3 checkpoints in a row"):
        saver.writer.take_events()


def test_failures_that_are_not_in_a_row_do_not_add_up(saver, monkeypatch):
    for step in range(2, 12, 2):
        with monkeypatch.context() as patch:
            _fail(patch, 1 if step % 4 else 0)
            saver.save(step)
            saver.writer._wait()
    assert [kind for kind, _ in saver.kinds()].count("checkpoint_failed") == 3


def test_the_last_one_is_tried_again_at_once(saver, tmp_path, monkeypatch):
    _fail(monkeypatch, 2)
    saver.save(8)
    saver.writer.finish()
    assert saver.kinds() == [("checkpoint_failed", 8), ("checkpoint_failed", 8), ("checkpoint_saved", 8)]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000008\n"


def test_if_the_last_one_cannot_be_written_that_is_an_error(saver, monkeypatch):
    _fail(monkeypatch, 9)
    saver.save(8)
    with pytest.raises(TrainingError, match="3 checkpoints in a row"):
        saver.writer.finish()


def test_an_error_that_is_no_disk_error_is_not_swallowed(saver, monkeypatch):
    def broken(*_, **__):
        raise TypeError("a bug")

    monkeypatch.setattr(module, "save_checkpoint", broken)
    saver.save(2)
    with pytest.raises(TypeError, match="a bug"):
        saver.writer.finish()


def test_host_copies_are_contiguous_and_take_the_same_memory_again():
    tensors = {"a": torch.arange(6.0).reshape(2, 3).t(), "b": torch.tensor(3, dtype=torch.int64)}
    host = HostCopy()
    first = host.take(tensors)
    assert first["a"].is_contiguous()
    assert same_bits(first, tensors)
    tensors["a"].add_(1)
    assert not torch.equal(first["a"], tensors["a"])
    again = host.take(tensors)
    assert same_bits(again, tensors)
    assert again["a"].data_ptr() == first["a"].data_ptr()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_host_copies_from_a_gpu_are_pinned_and_of_the_moment():
    tensor = torch.randn(1 << 22, device="cuda")
    expected, host = tensor.cpu(), HostCopy()
    copy = host.take({"a": tensor})["a"]
    tensor.zero_()
    assert copy.is_pinned()
    assert torch.equal(copy, expected)
