"""The benchmark of longer inputs: what is learned, what is read, and that readings change options and no weights."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks.length import READINGS, Task, masked, read_bytes, score, train, training_rows

TASK = Task(train_length=8, lengths=(8, 16), rows=2, steps=10, layers=1, hidden=32, heldout_bytes=64)
TEXT = np.frombuffer(b"the quick brown fox jumps over the lazy dog. " * 20, np.uint8)


def test_rows_hide_bytes_and_ask_for_them():
    rows = list(training_rows(TEXT, TASK, seed=0))
    assert len(rows) == TASK.steps
    inputs, labels = masked(np.arange(200).reshape(1, -1), np.random.default_rng(0))
    hidden = labels >= 0
    assert 10 < hidden.sum() < 60
    assert (inputs[hidden] == 256).all()
    assert torch.equal(torch.where(hidden, labels, inputs), torch.arange(200)[None])


def test_readings_change_how_the_same_weights_read():
    model = train(TEXT, TASK, 0, log_n=False)
    losses = {}
    for reading in READINGS[:3]:
        reading.set_up(model, TASK)
        losses[reading.name] = [score(model, TEXT, length, TASK)["loss"] for length in TASK.lengths]
    assert losses["plain"][0] == losses["plain, read with a window"][0]
    assert losses["plain"][1] != losses["plain, read with a window"][1]
    assert losses["plain"][1] != losses["plain, read with log n"][1]


def test_both_models_see_the_same_rows():
    first, second = (list(training_rows(TEXT, replace(TASK, steps=3), seed=1)) for _ in range(2))
    assert all(torch.equal(a, b) for one, two in zip(first, second, strict=True) for a, b in zip(one, two, strict=True))


def test_the_command_writes_every_figure(tmp_path, monkeypatch: pytest.MonkeyPatch):
    import typer

    from benchmarks import length

    monkeypatch.setattr(length, "Task", lambda steps: replace(TASK, steps=steps))
    file = tmp_path / "text.jsonl.gz"
    with gzip.open(file, "wt") as out:
        out.write(json.dumps({"text": bytes(TEXT).decode()}) + "\n")
    assert bytes(read_bytes(file)) == bytes(TEXT)
    app = typer.Typer()
    app.command()(length.main)
    done = CliRunner().invoke(
        app, [str(file), str(file), "--steps", "10", "--seeds", "1", "--json", str(tmp_path / "o")]
    )
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "o").read_text(encoding="utf-8"))
    assert len(found["results"]) == len(READINGS)
