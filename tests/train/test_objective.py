"""The loss of a step does not depend on how its rows are cut."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import islice

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from kexue_train.batches.collate import make_batch, without_unused_slots
from kexue_train.batches.dataset import SampleDataset
from kexue_train.batches.loader import Plan, iter_batches
from kexue_train.foundation.artifacts import read_manifest
from kexue_train.model import modeling_roformer_v2 as modeling
from kexue_train.model.linear_cross_entropy import LabelScores
from kexue_train.samples.mlm import MaskingRates
from kexue_train.train.data import to_tensors
from tests.batches.dense import dense
from tests.train.tiny_training import make_model, make_objective

ROWS = 8
FIRST = 20


@pytest.fixture(scope="module")
def vocab_size(samples):
    return read_manifest(samples).statistics["vocab_size"]


def _make(samples, rows):
    return to_tensors(make_batch(SampleDataset(samples), rows, 0, seed=1, rates=MaskingRates(0.3, 0.015, 0.015)))


@pytest.fixture(scope="module")
def batch(samples):
    return _make(samples, np.arange(FIRST, FIRST + ROWS))


def _objective(vocab_size, micro_batch, *, pairs_per_row=0.4, weight=0.7):
    model, _ = make_model(vocab_size)
    model.double().eval()
    return make_objective(model, expected=(4.0 * micro_batch, pairs_per_row * micro_batch), nsp_weight=weight)


def _backward(vocab_size, micro_batches, micro_batch):
    """Mean loss and mean gradients over the micro-batches, as Tiger averages them over a window and the ranks."""
    objective, total = _objective(vocab_size, micro_batch), 0.0
    gradients = {name: torch.zeros_like(parameter) for name, parameter in objective.named_parameters()}
    for tensors in micro_batches:
        loss, _ = objective(tensors)
        found = torch.autograd.grad(loss, list(objective.parameters()))
        for gradient, part in zip(gradients.values(), found, strict=True):
            gradient += part / len(micro_batches)
        total += loss.item() / len(micro_batches)
    return total, gradients


@pytest.fixture(scope="module")
def whole(vocab_size, samples):
    return _backward(vocab_size, _cut(samples, 1, ROWS), ROWS)


def _cut(samples, world, micro_batch):
    """The micro-batches of all ranks for the global batch of ROWS rows that starts with step 2."""
    plans = [
        Plan(
            seed=1,
            rank=rank,
            world_size=world,
            micro_batch_size=micro_batch,
            accumulation_steps=ROWS // world // micro_batch,
            global_batch_size=ROWS,
            rates=MaskingRates(0.3, 0.015, 0.015),
        )
        for rank in range(world)
    ]
    made = [
        list(islice(iter_batches(SampleDataset(samples), plan, start_step=2), plan.accumulation_steps))
        for plan in plans
    ]
    return [to_tensors(batch) for batches in made for batch in batches]


@pytest.mark.parametrize(("world", "micro_batch"), [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (2, 4), (4, 2), (8, 1)])
def test_loss_and_gradient_are_the_same_however_rows_are_cut(vocab_size, samples, whole, world, micro_batch):
    loss, gradients = _backward(vocab_size, _cut(samples, world, micro_batch), micro_batch)
    assert loss == pytest.approx(whole[0], rel=1e-6)
    for name, gradient in gradients.items():
        largest = whole[1][name].abs().max().item()  # losses and logits are fp32 whatever the model is
        torch.testing.assert_close(gradient, whole[1][name], rtol=0, atol=1e-6 * largest, msg=name)
    assert all(gradient.abs().max() > 0 for gradient in whole[1].values())


def test_loss_is_both_sums_over_their_expected_counts(vocab_size, batch):
    objective = _objective(vocab_size, ROWS)
    loss, (mlm, nsp) = objective(batch)
    mlm, nsp = LabelScores(*mlm), LabelScores(*nsp)
    hidden = objective.model.roformer(
        batch["input_ids"],
        sequence_ids=batch["sequence_ids"],
        position_ids=batch["position_ids"],
        token_type_ids=batch["token_type_ids"],
    ).last_hidden_state
    heads, labels = objective.model.cls, dense({name: tensor.numpy() for name, tensor in batch.items()})
    # Training has logits for all rows of the word table, those that only fill it up too.
    logits = heads.predictions.decoder(heads.predictions.features(hidden)).flatten(0, 1)
    words = F.cross_entropy(logits, torch.from_numpy(labels["labels"]).flatten(), reduction="sum")
    relations = heads.next_sentence(hidden).flatten(0, 1)
    pairs = F.cross_entropy(relations, torch.from_numpy(labels["pairs"]).flatten(), reduction="sum")
    torch.testing.assert_close(
        loss, words / (4 * ROWS) + 0.7 * pairs / (0.4 * ROWS), rtol=1e-5, atol=0.0, check_dtype=False
    )
    assert mlm.num_labels == (labels["labels"] >= 0).sum() > 0
    assert nsp.num_labels == (labels["pairs"] >= 0).sum() > 0
    assert mlm.correct == (logits.argmax(-1).numpy() == labels["labels"].ravel()).sum()
    assert not any(term.requires_grad for term in (*mlm, *nsp))


def test_unused_slots_change_nothing(vocab_size, batch):
    longer = dict(batch)
    for task in ("prediction", "pair"):
        longer[f"{task}_slots"] = F.pad(batch[f"{task}_slots"], (0, 64), value=0)
        longer[f"{task}_labels"] = F.pad(batch[f"{task}_labels"], (0, 64), value=-100)
    found = [_objective(vocab_size, ROWS)(tensors) for tensors in (batch, longer)]
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])


def test_without_its_unused_slots_a_batch_has_the_same_loss(vocab_size, batch):
    arrays = {name: tensor.numpy() for name, tensor in batch.items()}
    shorter = to_tensors(without_unused_slots(arrays))
    assert len(shorter["prediction_slots"]) < len(batch["prediction_slots"])
    found = [_objective(vocab_size, ROWS)(tensors) for tensors in (batch, shorter)]
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])


@pytest.mark.parametrize("names", [("prediction_slots", "prediction_labels"), ("pair_slots", "pair_labels")])
def test_a_task_without_a_slot_has_no_loss(vocab_size, batch, names):
    objective = _objective(vocab_size, ROWS)
    loss, sums = objective(batch | {name: batch[name][:0] for name in names})
    assert torch.isfinite(loss)
    assert LabelScores(*sums[0 if names[0] == "prediction_slots" else 1]).num_labels == 0
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(loss, list(objective.parameters())))


def test_samples_without_pairs_have_a_finite_loss(vocab_size, batch):
    alone = batch | {"pair_labels": torch.full_like(batch["pair_labels"], -100)}
    loss, (mlm, _) = _objective(vocab_size, ROWS, pairs_per_row=0.0)(alone)
    torch.testing.assert_close(loss, LabelScores(*mlm).loss / (4 * ROWS), check_dtype=False)


def test_a_micro_batch_without_predictions_has_loss_and_gradient_zero(vocab_size, batch):
    nothing = {name: torch.full_like(batch[name], -100) for name in ("prediction_labels", "pair_labels")}
    objective = _objective(vocab_size, ROWS)
    loss, sums = objective(batch | nothing)
    assert (loss.item(), *(LabelScores(*head).num_labels.item() for head in sums)) == (0, 0, 0)
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, list(objective.parameters())))


def test_forward_and_backward_wait_for_no_device(batch, vocab_size, monkeypatch):
    """On the meta device no tensor has a value, so whatever asks for one fails."""
    model = make_model(vocab_size)[0].train().to("meta", torch.bfloat16)
    monkeypatch.setattr(type(model.roformer), "_has_varlen_kernel", lambda _: True)
    monkeypatch.setattr(modeling, "_ONE_PRODUCT", {"meta"})
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)  # torch has none for this device
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    loss, scores = make_objective(model)({name: value.to("meta") for name, value in batch.items()})
    loss.backward()
    assert scores.shape == (2, 3)
    assert all(param.grad is not None and param.grad.is_meta for param in model.parameters())
