"""A third head, sentence order (SOP of ALBERT): is it [CLS] A [SEP] B [SEP], or were A and B swapped?

The tests do from outside what an addition would do in five files:

1. ``metrics/heads.py``: its name, ``SOP``, in ``HEADS``;
2. ``train/heads.py``: an entry of ``pretraining_heads``;
3. ``batches/collate.py``: its target, found beside the others (here also the swap itself);
4. ``model/modeling_roformer_v2.py``: its layer;
5. ``train/config.py``: its weight (here a constant).
"""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from torch import nn

from kexue_train.batches import collate
from kexue_train.batches.collate import Target
from kexue_train.batches.dataset import SampleDataset
from kexue_train.metrics import heads as metric_heads
from kexue_train.metrics.heads import Head
from kexue_train.model import RoFormerV2ForPreTraining
from kexue_train.train import heads
from kexue_train.train.faults.stop import Ending
from kexue_train.train.heads import TrainedHead, score_classes
from tests.train.tiny_training import curve, final_tensors, make_config, train_here

SOP = Head("sop", "SOP", "orders", "sentence order", num_classes=2)
ORDER = Target("order_slots", "order_labels")
WEIGHT = 0.5


def swap_segments(columns, rows):
    """Swap A and B of every other pair; return the labels (B, K): 0 = as they were, 1 = swapped, -100 = no pair."""
    lengths, a_lengths = columns["sequence_lengths"], columns["segment_a_lengths"]
    firsts = np.cumsum(lengths, axis=1) - lengths
    is_odd = (rows[:, None] + np.arange(lengths.shape[1])) % 2
    labels = np.where(columns["next_sentence_labels"] >= 0, is_odd, -100)
    for row, place in np.argwhere(labels == 1):
        first, length, middle = (int(of[row, place]) for of in (firsts, lengths, a_lengths))
        for name in ("input_ids", "word_starts"):
            tokens = columns[name][row, first + 1 : first + length]  # A [SEP] B [SEP]
            tokens[:] = np.roll(tokens, length - middle)
        a_lengths[row, place] = length - middle + 1
    return labels


@pytest.fixture
def third_head(monkeypatch):
    old_heads, old_targets, take = heads.pretraining_heads, collate._find_targets, SampleDataset.take
    build = RoFormerV2ForPreTraining.__init__

    def take_swapped(dataset, rows):
        columns = take(dataset, rows)
        return columns | {"order_labels": swap_segments(columns, rows)}

    def find_targets(dataset, columns, first_slots, masked, rates):
        in_row, in_list = np.nonzero(columns["order_labels"] >= 0)
        slots = in_row * dataset.seq_len + first_slots[in_row, in_list]
        found = (
            slots,
            columns["order_labels"][in_row, in_list],
            collate.pair_capacity(len(first_slots), dataset.seq_len),
        )
        return old_targets(dataset, columns, first_slots, masked, rates) | {ORDER: found}

    def build_with_layer(model, config):
        build(model, config)
        model.cls.sentence_order = nn.Linear(config.hidden_size, 2, bias=False)

    def three_heads(config):
        return (
            *old_heads(config),
            TrainedHead(
                head=SOP,
                target=ORDER,
                weight=WEIGHT,
                layer=lambda model: model.cls.sentence_order,
                score=lambda model, hidden, labels: score_classes(model.cls.sentence_order, hidden, labels),
                mean_per_row=lambda dataset: dataset.mean_per_row("pairs"),
                initial_loss=lambda _: math.log(2),
                prior_loss=lambda _: math.log(2),
            ),
        )

    monkeypatch.setattr(SampleDataset, "take", take_swapped)
    monkeypatch.setattr(collate, "_find_targets", find_targets)
    monkeypatch.setattr(collate, "TARGETS", (*collate.TARGETS, ORDER))
    monkeypatch.setattr(RoFormerV2ForPreTraining, "__init__", build_with_layer)
    for name, old, new in [
        ("pretraining_heads", old_heads, three_heads), ("HEADS", metric_heads.HEADS, (*metric_heads.HEADS, SOP))
    ]:  # fmt: skip
        for module in list(sys.modules.values()):
            if module.__name__.startswith("kexue_train.") and getattr(module, name, None) is old:
                monkeypatch.setattr(module, name, new)


def test_a_third_head_is_trained_validated_logged_and_saved(samples, tmp_path, third_head):
    assert train_here(make_config(steps=4), samples, tmp_path / "out") is Ending.FINISHED
    lines = curve(tmp_path / "out", "train")
    assert len(lines) == 4
    for line in lines:
        assert line["loss"] == pytest.approx(line["mlm_loss"] + line["nsp_loss"] + WEIGHT * line["sop_loss"])
        assert 0 <= line["sop_accuracy"] <= 1
    (validation,) = curve(tmp_path / "out", "validation")
    assert validation["sop_loss"] == pytest.approx(math.log(2), abs=0.3)
    assert validation["orders"] == validation["pairs"] > 0
    weights = final_tensors(tmp_path / "out", step=4)
    layer = next(name for name in weights if "sentence_order" in name)
    assert not torch.equal(weights[layer], final_tensors(tmp_path / "out", step=2)[layer])
