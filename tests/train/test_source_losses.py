"""The held-out loss of each source of a mixture is the one that its predictions have, sequence by sequence."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from kexue_train.batches.collate import make_batch
from kexue_train.batches.dataset import SampleDataset
from kexue_train.corpus.config import CorpusConfig
from kexue_train.executor import LocalExecutor
from kexue_train.metrics.fields import Kind
from kexue_train.metrics.file import read_metrics
from kexue_train.metrics.prometheus import _Lines
from kexue_train.model import RoFormerV2ForPreTraining
from kexue_train.samples.build_samples import build_samples
from kexue_train.samples.config import SampleConfig, TokenizerConfig
from kexue_train.samples.tokenizer import train_tokenizer
from kexue_train.shuffle.config import ShuffleConfig
from kexue_train.shuffle.shuffle_corpus import shuffle_corpus
from kexue_train.train.faults.stop import Ending
from tests.batches.dense import dense
from tests.shuffle.conftest import write_jsonl
from tests.train.tiny_training import _SENTENCES, SEQ_LEN, make_config, train_by_ranks, train_here

SOURCES = ("prose", "numbers")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """Samples of prose and of counting."""
    folder = tmp_path_factory.mktemp("mixed")
    prose = [f"{_SENTENCES[i % 5]} {_SENTENCES[(i // 5) % 5]} Page {i}." for i in range(60)]
    numbers = [" ".join(f"{i + j} is {i} and {j}." for j in range(2 + i % 4)) for i in range(50)]
    entries = [
        {"name": name, "inputs": [str(write_jsonl(folder / f"{name}.jsonl", texts))]}
        for name, texts in zip(SOURCES, (prose, numbers), strict=True)
    ]
    sources = CorpusConfig.parse({"sources": entries}, where="test").sources
    shuffle_corpus(ShuffleConfig(), sources, folder / "shards", seed=3, executor=LocalExecutor(1))
    train_tokenizer(TokenizerConfig(vocab_size=160), folder / "shards", folder / "tokenizer")
    config = SampleConfig(seq_len=SEQ_LEN, heldout_fraction=0.2)
    build_samples(
        config, folder / "shards", folder / "tokenizer", folder / "samples", seed=3, executor=LocalExecutor(1)
    )
    return folder / "samples"


@pytest.fixture(scope="module")
def trained(mixed, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "pretrain"
    assert train_here(make_config(), mixed, out) is Ending.FINISHED
    return out


def losses_by_hand(model: RoFormerV2ForPreTraining, samples: Path) -> dict[str, list[float]]:
    """The losses of all predictions of each source, every sequence computed alone."""
    dataset = SampleDataset(samples)
    rows = dataset.heldout_rows
    batch, columns = dense(make_batch(dataset, rows, 0, seed=7)), dataset.take(rows)
    found: dict[str, list[float]] = defaultdict(list)
    for row in range(len(rows)):
        for number in range(batch["sequence_ids"][row].max()):
            slots = np.flatnonzero(batch["sequence_ids"][row] == number + 1)
            ids, types = (torch.from_numpy(batch[name][row, slots])[None] for name in ("input_ids", "token_type_ids"))
            with torch.no_grad():  # training scores the rows that only fill up the word table too
                head = model.cls.predictions
                hidden = model.roformer(ids, token_type_ids=types).last_hidden_state[0]
                logits = head.features(hidden) @ head.decoder.weight.T
            border = columns["segment_a_lengths"][row, number]
            for place, label in enumerate(batch["labels"][row, slots].tolist()):
                if label != -100:
                    which = "segment_a_sources" if place < border else "segment_b_sources"
                    loss = F.cross_entropy(logits[place], torch.tensor(label)).item()
                    found[SOURCES[columns[which][row, number]]].append(loss)
    return found


def test_the_loss_of_a_source_is_that_of_its_predictions(mixed, trained):
    lines = [line for line in read_metrics(trained / "metrics.jsonl") if line["kind"] == Kind.SOURCE]
    assert [(line["step"], line["source"]) for line in lines] == [(step, name) for step in (4, 8) for name in SOURCES]
    model = RoFormerV2ForPreTraining.from_pretrained(trained / "checkpoints" / "step-00000008").eval()
    expected = losses_by_hand(model, mixed)
    for line in lines[2:]:
        own = expected[line["source"]]
        assert line["source_predictions"] == len(own) > 20
        assert line["source_loss"] == pytest.approx(np.mean(own), rel=1e-5)


def test_the_losses_of_all_sources_make_up_the_held_out_loss(trained):
    lines = read_metrics(trained / "metrics.jsonl")
    for whole in (line for line in lines if line["kind"] == Kind.VALIDATION):
        parts = [line for line in lines if line["kind"] == Kind.SOURCE and line["step"] == whole["step"]]
        assert sum(line["source_predictions"] for line in parts) == whole["predictions"]
        for key in ("loss", "accuracy"):
            total = sum(line[f"source_{key}"] * line["source_predictions"] for line in parts)
            assert total / whole["predictions"] == pytest.approx(whole[f"mlm_{key}"], rel=1e-5)


def test_the_newest_losses_of_sources_are_served(trained):
    lines = read_metrics(trained / "metrics.jsonl")
    served = _Lines.of(lines, (0, 0, 0)).sources
    assert {name: line["step"] for name, line in served.items()} == dict.fromkeys(SOURCES, 8)


@pytest.mark.slow
def test_two_ranks_find_the_same_losses(mixed, trained, tmp_path):
    out = tmp_path / "pretrain"
    train_by_ranks(make_config(num_workers=2, micro_batch_size=2), mixed, out)
    ours, theirs = (
        {(line["step"], line["source"]): line for line in read_metrics(folder / "metrics.jsonl") if "source" in line}
        for folder in (trained, out)
    )
    assert ours.keys() == theirs.keys()
    for key, line in ours.items():
        assert theirs[key]["source_predictions"] == line["source_predictions"]
        assert theirs[key]["source_loss"] == pytest.approx(line["source_loss"], rel=1e-3)
