"""The benchmark of the encoder: that everybody gets the same tokens, and that costs are counted right."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads

from benchmarks.encoder_cost import allocated
from benchmarks.encoder_data import made_up_rows, micro_batches, rows_of_samples
from benchmarks.encoder_models import ENCODERS, OURS, SIZES, Size, make
from kexue_train.batches.dataset import SampleDataset
from kexue_train.foundation.errors import ConfigError
from kexue_train.model.recompute import enable_recompute
from tests.train.tiny_training import write_samples
from tests.train.warm_python import warm_python

CPU = torch.device("cpu")
SEQ_LEN, VOCAB = 64, 90


@pytest.fixture(scope="module")
def batch():
    return next(micro_batches(made_up_rows(3, seq_len=SEQ_LEN, vocab_size=VOCAB), 3, SEQ_LEN, CPU))


def test_both_forms_hold_the_same_documents(batch):
    packed, padded = batch.packed, batch.padded
    slots = packed["sequence_ids"] > 0
    real = padded["attention_mask"] > 0
    assert batch.real_tokens == slots.sum() == real.sum()
    for name in ("input_ids", "token_type_ids"):
        assert torch.equal(packed[name][slots], padded[name][real])
    places = torch.arange(padded["input_ids"].shape[1]).expand_as(real)
    assert torch.equal(packed["position_ids"][slots], places[real])
    predicted = padded["labels"] >= 0
    assert torch.equal(packed["prediction_labels"], padded["labels"][predicted])
    assert torch.equal(packed["input_ids"].flatten()[packed["prediction_slots"]], padded["input_ids"][predicted])
    assert batch.num_predictions == predicted.sum() > 0
    assert torch.equal(packed["position_ids"].flatten()[packed["pair_slots"]], torch.zeros(len(batch.lengths)).long())
    assert torch.equal(packed["pair_labels"], padded["next_sentence_label"])


def test_documents_of_samples_are_the_sequences_of_their_rows(tmp_path):
    samples = write_samples(tmp_path)
    dataset = SampleDataset(samples)
    columns, rows = dataset.take(np.arange(8)), rows_of_samples(samples, 8)
    for row, documents in enumerate(rows):
        tokens = np.concatenate([document.ids for document in documents])
        assert (columns["input_ids"][row, : len(tokens)] == tokens).all()
        assert [len(document.ids) for document in documents] == [n for n in columns["sequence_lengths"][row] if n]
        assert all(document.ids[0] == dataset.special_token_ids["cls"] for document in documents)
    with pytest.raises(ConfigError, match="take fewer rows"):
        rows_of_samples(samples, 10**6)


def test_our_loss_on_packed_rows_is_the_loss_on_padded_documents(batch):
    model = make(OURS, SIZES["tiny"], VOCAB, SEQ_LEN, 0.0, CPU)
    padded = model(**batch.padded)
    expected = padded.loss  # means over the predictions and over the documents, added
    torch.testing.assert_close(OURS.loss(model, batch), expected, rtol=1e-4, atol=0)
    words = F.cross_entropy(padded.prediction_logits.flatten(0, 1), batch.padded["labels"].flatten())
    assert 0 < words < expected


@pytest.mark.parametrize("encoder", ENCODERS, ids=lambda encoder: encoder.name)
def test_all_encoders_have_the_same_shape_and_a_loss(batch, encoder):
    model = make(encoder, SIZES["tiny"], VOCAB, SEQ_LEN, 0.1, CPU)
    loss = encoder.loss(model, batch)
    loss.backward()
    assert loss.isfinite()
    layers = sum(p.numel() for name, p in model.named_parameters() if ".layer." in name and p.ndim == 2)
    assert layers == 2 * 12 * 128**2


def test_allocated_bytes_are_counted():
    def call() -> torch.Tensor:
        kept = torch.zeros(250_000)
        torch.zeros(500_000).add_(1)
        return kept

    found = allocated(call, CPU)
    assert found.left == pytest.approx(1e6, rel=1e-3)
    assert found.peak == pytest.approx(3e6, rel=1e-3)


def test_what_recomputation_keeps_is_counted(batch):
    kept = []
    for mode in ("none", "selective", "full"):
        model = make(OURS, Size(4, 128), VOCAB, SEQ_LEN, 0.1, CPU)
        if mode != "none":
            enable_recompute(model.roformer, mode)
        kept.append(allocated(lambda model=model: OURS.loss(model, batch), CPU).left)
    assert kept[0] > 1.5 * kept[1] > 3 * kept[2]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["compare", "recompute"])
def test_it_runs_and_writes_its_figures(tmp_path, command):
    script, out = Path(__file__).parents[2] / "benchmarks" / "encoder.py", tmp_path / "figures.json"
    options = {"size": "tiny", "rounds": 1, "rows": 1, "seq-len": 64, "vocab": 90, "precision": "fp32", "json": out}
    options |= {"layers": "1,2"} if command == "recompute" else {}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    subprocess.run([warm_python(), str(script), command, *arguments], check=True, timeout=600)
    results = json.loads(out.read_text(encoding="utf-8"))["results"]
    assert len(results) == (6 if command == "recompute" else len(ENCODERS))
    assert all((r.get("peak") or r["peak_bytes"]) > 0 for r in results)
