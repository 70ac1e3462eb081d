"""The benchmark of training: that all get the micro-batches of the loop, and that each block is one."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks.train import make_job
from benchmarks.train_blocks import BareSteps, Measured, MicroBatches, num_steps, real_tokens, train_in_blocks
from kexue_train.batches.dataset import SampleDataset
from kexue_train.metrics.file import read_metrics
from kexue_train.train.job import TrainDir
from tests.train.tiny_training import make_config, train_here, write_samples
from tests.train.warm_python import warm_python

BLOCK, ROUNDS = 2, 4
STEPS = num_steps(BLOCK, ROUNDS)
CONFIG = make_config(steps=STEPS, log_every=BLOCK, checkpoint_every=2 * BLOCK, validate_every=100)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_samples(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def seen() -> dict[str, list[MicroBatches]]:
    """What each worker was given."""
    return {"first": [], "second": []}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out") / "training"


@pytest.fixture(scope="module")
def measured(samples: Path, out: Path, seen: dict[str, list[MicroBatches]]) -> Measured:
    def note(name: str):
        return lambda batches: float(len(seen[name].append(list(batches)) or batches))

    return train_in_blocks(CONFIG, samples, out, BLOCK, {name: note(name) for name in seen})


def test_every_block_is_handed_over_once_to_everybody(measured, seen):
    warm_up, *blocks = seen["first"]
    assert len(warm_up) == 2  # one step of two micro-batches
    assert [len(batches) for batches in blocks] == [2 * BLOCK] * ROUNDS
    assert [block.tokens for block in measured.blocks] == [real_tokens(batches) for batches in blocks]
    assert all(block.seconds["second"] == 2 * BLOCK and block.seconds["loop"] > 0 for block in measured.blocks)
    assert all(a is b for one, two in zip(*seen.values(), strict=True) for a, b in zip(one, two, strict=True))


def test_checkpoints_fall_into_every_second_block(measured):
    assert [block.saved for block in measured.blocks] == [False, True, False, True]
    assert len(measured.stall_seconds) == 3  # the end saves, too


def test_the_training_is_the_one_that_nobody_watches(measured, samples, out, tmp_path):
    train_here(CONFIG, samples, tmp_path / "alone")
    losses = [
        [line["loss"] for line in read_metrics(TrainDir(root).metrics) if line["kind"] == "train"]
        for root in (out, tmp_path / "alone")
    ]
    assert losses[0] == losses[1]


def test_bare_steps_train(measured, seen, samples):
    bare = BareSteps(CONFIG, SampleDataset(samples))
    model = bare._engine._objective.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert bare(seen["first"][1]) > 0
    assert all(not tensor.equal(before[name]) for name, tensor in model.named_parameters() if tensor.ndim == 2)


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="transformers.Trainer needs accelerate")
def test_the_peers_get_the_words_before_masking(measured, seen, samples):
    from benchmarks.train_peer import joined_documents, paired_documents  # needs accelerate

    dataset, size = SampleDataset(samples), 2 * 4  # the warm-up
    rows, _ = dataset.rows_at(np.arange(size), CONFIG.seed)
    columns = dataset.take(rows)
    documents, joined = paired_documents(seen["first"][0]), joined_documents(seen["first"][0])
    lengths = [int(length) for row in columns["sequence_lengths"] for length in row if length]
    assert [len(document["input_ids"]) for document in documents] == lengths
    words = [columns["input_ids"][row, : columns["sequence_lengths"][row].sum()] for row in range(size)]
    assert [list(example["input_ids"]) for example in joined] == [list(row) for row in words]
    assert np.array_equal(np.concatenate([d["input_ids"] for d in documents]), np.concatenate(words))
    labels = [label for row, n in zip(columns["next_sentence_labels"], columns["sequence_lengths"], strict=True)
              for label, length in zip(row, n, strict=True) if length]  # fmt: skip
    assert [document["next_sentence_label"] for document in documents] == labels
    firsts = [first for row, n in zip(columns["segment_a_lengths"], columns["sequence_lengths"], strict=True)
              for first, length in zip(row, n, strict=True) if length]  # fmt: skip
    assert [int((document["token_type_ids"] == 0).sum()) for document in documents] == firsts


def test_jobs_have_the_size_asked_for(samples):
    config = make_job(samples, "small", 2, 3, steps=5)
    assert (config.model.num_hidden_layers, config.model.hidden_size, config.train.global_batch_size) == (6, 384, 6)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["loop", "peer", "scaling"])
def test_it_runs_and_writes_its_figures(tmp_path, samples, command):
    if command == "peer" and importlib.util.find_spec("accelerate") is None:
        pytest.skip("transformers.Trainer needs accelerate")
    script, out = Path(__file__).parents[2] / "benchmarks" / "train.py", tmp_path / "figures.json"
    rounds = 1 if command == "scaling" else 2  # a round of it starts torchrun twice
    sizes = {"size": "tiny", "rows": 1, "block": 2, "rounds": rounds}
    options = sizes | {"samples": samples, "workdir": tmp_path, "json": out}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    subprocess.run([warm_python(), str(script), command, *arguments], check=True, timeout=600)
    figures = json.loads(out.read_text(encoding="utf-8"))
    if command == "scaling":
        assert {workers: len(rates) for workers, rates in figures["tokens_per_second"].items()} == {"1": 2, "2": 2}
    else:
        assert all(seconds > 0 for block in figures["blocks"] for seconds in block["seconds"].values())
    assert {path.name for path in tmp_path.iterdir()} == {"figures.json"}
