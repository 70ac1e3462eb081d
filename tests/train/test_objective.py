"""The loss of a step does not depend on how its rows are cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from kexue_train.artifacts import read_manifest
from kexue_train.batches.collate import make_batch
from kexue_train.batches.dataset import SampleDataset
from kexue_train.train.objective import ExpectedCounts, PretrainingObjective
from tests.train.tiny_training import make_model

ROWS = 12


@pytest.fixture(scope="module")
def vocab_size(samples):
    return read_manifest(samples).statistics["vocab_size"]


@pytest.fixture(scope="module")
def batch(samples):
    made = make_batch(SampleDataset(samples), np.arange(20, 20 + ROWS), 0, seed=1, mask_probability=0.3)
    return {name: torch.from_numpy(array) for name, array in made.items()}


def _objective(vocab_size, micro_batch, *, pairs_per_row=0.4, weight=0.7):
    model, _ = make_model(vocab_size)
    model.double().eval()
    expected = ExpectedCounts(predictions=4.0 * micro_batch, pairs=pairs_per_row * micro_batch)
    return PretrainingObjective(model, expected, nsp_weight=weight, autocast=None)


def _backward(vocab_size, batch, micro_batch):
    """Mean loss and mean gradients over the micro-batches, as Tiger averages them over a window."""
    objective = _objective(vocab_size, micro_batch)
    count, total = ROWS // micro_batch, 0.0
    gradients = {name: torch.zeros_like(parameter) for name, parameter in objective.named_parameters()}
    for start in range(0, ROWS, micro_batch):
        loss, _ = objective({name: tensor[start : start + micro_batch] for name, tensor in batch.items()})
        found = torch.autograd.grad(loss, list(objective.parameters()))
        for gradient, part in zip(gradients.values(), found, strict=True):
            gradient += part / count
        total += loss.item() / count
    return total, gradients


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 4, 6])
def test_loss_and_gradient_are_the_same_however_rows_are_cut(vocab_size, batch, micro_batch):
    whole_loss, whole = _backward(vocab_size, batch, ROWS)
    loss, gradients = _backward(vocab_size, batch, micro_batch)
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    for name, gradient in gradients.items():
        largest = whole[name].abs().max().item()  # losses and logits are fp32 whatever the model is
        torch.testing.assert_close(gradient, whole[name], rtol=0, atol=1e-6 * largest, msg=name)
    assert all(gradient.abs().max() > 0 for gradient in whole.values())


def test_loss_is_both_sums_over_their_expected_counts(vocab_size, batch):
    objective = _objective(vocab_size, ROWS)
    loss, terms = objective(batch)
    hidden = objective.model.roformer(
        batch["input_ids"],
        sequence_ids=batch["sequence_ids"],
        position_ids=batch["position_ids"],
        token_type_ids=batch["token_type_ids"],
    ).last_hidden_state
    heads = objective.model.cls
    words = F.cross_entropy(heads.predictions(hidden).flatten(0, 1), batch["labels"].flatten(), reduction="sum")
    relations = heads.next_sentence(hidden).flatten(0, 1)
    pairs = F.cross_entropy(relations, batch["next_sentence_labels"].flatten(), reduction="sum")
    torch.testing.assert_close(
        loss, words / (4 * ROWS) + 0.7 * pairs / (0.4 * ROWS), rtol=1e-5, atol=0.0, check_dtype=False
    )
    assert terms.mlm_count == (batch["labels"] >= 0).sum() > 0
    assert terms.nsp_count == (batch["next_sentence_labels"] >= 0).sum() > 0
    assert not any(term.requires_grad for term in terms)


def test_samples_without_pairs_have_a_finite_loss(vocab_size, batch):
    alone = batch | {"next_sentence_labels": torch.full_like(batch["next_sentence_labels"], -100)}
    loss, terms = _objective(vocab_size, ROWS, pairs_per_row=0.0)(alone)
    torch.testing.assert_close(loss, terms.mlm_loss / (4 * ROWS), check_dtype=False)


def test_a_micro_batch_without_predictions_has_loss_and_gradient_zero(vocab_size, batch):
    nothing = {name: torch.full_like(batch[name], -100) for name in ("labels", "next_sentence_labels")}
    loss, terms = _objective(vocab_size, ROWS)(batch | nothing)
    loss.backward()
    assert (loss.item(), terms.mlm_count.item(), terms.nsp_count.item()) == (0, 0, 0)
