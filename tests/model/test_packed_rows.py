"""Several sequences in one row: the same numbers as each alone, and nothing leaks between them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads

from kexue_train.model.modeling_roformer_v2 import attention_mask_of

LENGTHS, SLOTS = (11, 7, 4), 26


def pack(lengths: tuple[int, ...], slots: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequence numbers from 1 (0 for padding) and positions that restart, both [1, slots]."""
    lengths = (*lengths, slots - sum(lengths))
    numbers = [n for n, length in enumerate(lengths, start=1) for _ in range(length)]
    sequence_ids = torch.tensor([[0 if n == len(lengths) else n for n in numbers]])
    return sequence_ids, torch.tensor([[p for length in lengths for p in range(length)]])


@pytest.fixture
def packed_row(tokens):
    """(tokens, sequence numbers, positions), all [1, 26]: three sequences and four slots of padding."""
    return tokens(1, SLOTS), *pack(LENGTHS, SLOTS)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_packed_sequence_has_the_outputs_it_has_alone(make_model, packed_row, attention):
    model, (input_ids, sequence_ids, positions) = make_model(attention=attention), packed_row
    together = model(input_ids, sequence_ids=sequence_ids, position_ids=positions).prediction_logits
    for number in (1, 2, 3):
        place = sequence_ids[0] == number
        alone = model(input_ids[:, place]).prediction_logits
        torch.testing.assert_close(together[:, place], alone, atol=1e-5, rtol=1e-5)


def test_a_packed_row_has_the_gradients_of_its_sequences(make_model, packed_row, tokens):
    model, (input_ids, sequence_ids, positions) = make_model(gain=1.0), packed_row
    labels = tokens(1, SLOTS, seed=1)
    logits = model(input_ids, sequence_ids=sequence_ids, position_ids=positions).prediction_logits
    real = sequence_ids > 0
    F.cross_entropy(logits[real], labels[real], reduction="sum").backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for number in (1, 2, 3):
        place = sequence_ids[0] == number
        logits = model(input_ids[:, place]).prediction_logits
        F.cross_entropy(logits[0], labels[0, place], reduction="sum").backward()
    for name, parameter in model.named_parameters():
        if "next_sentence" not in name:
            torch.testing.assert_close(together[name], parameter.grad, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("changed", [0, 1, 2, 3], ids=["padding", "first", "second", "third"])
def test_a_token_never_influences_another_sequence(make_model, packed_row, attention, changed):
    model, (input_ids, sequence_ids, positions) = make_model(attention=attention), packed_row
    other = torch.where(sequence_ids == changed, input_ids % 96 + 1, input_ids)
    before, after = (
        model(ids, sequence_ids=sequence_ids, position_ids=positions).prediction_logits for ids in (input_ids, other)
    )
    untouched = sequence_ids != changed
    assert torch.equal(before[untouched], after[untouched])
    assert not torch.isclose(before[~untouched], after[~untouched]).all(-1).any()


def test_gradients_stay_inside_a_sequence(make_model, packed_row):
    model, (input_ids, sequence_ids, positions) = make_model(), packed_row
    embedded = model.get_input_embeddings()(input_ids).detach().requires_grad_()
    logits = model(inputs_embeds=embedded, sequence_ids=sequence_ids, position_ids=positions).prediction_logits
    logits[sequence_ids == 2].sum().backward()
    reached = embedded.grad.abs().sum(-1) > 0
    assert torch.equal(reached, sequence_ids == 2)


def test_a_row_of_padding_gives_finite_numbers(make_model, tokens):
    logits = make_model()(tokens(1, 8), sequence_ids=torch.zeros(1, 8, dtype=torch.long)).prediction_logits
    assert torch.isfinite(logits).all()


def test_sequence_ids_become_blocks():
    mask = attention_mask_of(torch.tensor([[1, 1, 2, 0]]), None)
    assert mask[0, 0].int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_a_mask_without_padding_is_no_mask():
    assert attention_mask_of(None, torch.ones(2, 5)) is None
    assert attention_mask_of(None, None) is None
