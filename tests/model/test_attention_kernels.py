"""Every way to attend gives the numbers of the written-out one, forward and backward, and only a mask makes [S, S]."""

from __future__ import annotations

import sys
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kexue_train.model import modeling_roformer_v2 as modeling
from kexue_train.model.modeling_roformer_v2 import Visibility, attention_kernel, attention_mask_of, sequence_starts

HEADS, SIZE, SLOTS = 3, 8, 24
# fp32 rounds at 6e-8 and bf16 at 4e-3 of values of order one.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
ROWS = st.lists(st.lists(st.integers(1, 9), max_size=4).filter(lambda row: sum(row) <= SLOTS), min_size=1, max_size=3)


def ids_of(rows: list[list[int]]) -> torch.Tensor:
    """Sequence numbers [B, 24] of rows with sequences of these lengths, then padding."""
    numbered = [[n for n, length in enumerate(row, 1) for _ in range(length)] for row in rows]
    return torch.tensor([row + [0] * (SLOTS - len(row)) for row in numbered])


def visibility(sequence_ids: torch.Tensor, form: str) -> Visibility:
    starts = sequence_starts(sequence_ids)
    forms = {"mask": {"mask": attention_mask_of(sequence_ids, None)}, "lengths": {"lengths": starts.diff().tolist()},
             "starts": {"starts": starts.int()}}  # fmt: skip
    return Visibility(**forms[form])


def attend(
    sequence_ids: torch.Tensor, form: str, implementation: str, dtype: torch.dtype, device: str = "cpu"
) -> list[torch.Tensor]:
    """Result and gradients for random q, k and v, in fp32 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, direction = torch.randn(4, *sequence_ids.shape, HEADS, SIZE, generator=generator).to(device, dtype)
    inputs = [x.detach().requires_grad_() for x in (2 * q, 2 * k, v)]
    seen = visibility(sequence_ids.to(device), form)
    result = attention_kernel(implementation, seen)(*inputs, seen, 0.0)
    assert result.shape == q.shape
    assert result.dtype == dtype
    return [x.detach().float().cpu() for x in (result, *torch.autograd.grad(result, inputs, direction))]


def assert_like_eager(sequence_ids: torch.Tensor, found: list[torch.Tensor], dtype: torch.dtype) -> None:
    for x, expected in zip(found, attend(sequence_ids, "mask", "eager", torch.float32), strict=True):
        torch.testing.assert_close(x, expected, atol=TOLERANCE[dtype] * expected.abs().max().item(), rtol=0)


@pytest.fixture
def fake_flash_attn(monkeypatch):
    """The package's function with the arguments it documents, as a loop in plain torch."""

    def varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0):
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        assert max_seqlen_q == max_seqlen_k >= cu_seqlens_q.diff().max()
        assert dropout_p == 0
        parts = []
        for start, end in pairwise(cu_seqlens_q):
            scores = torch.einsum("qhd,khd->hqk", q[start:end], k[start:end]) * q.shape[-1] ** -0.5
            parts.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[start:end]))
        return torch.cat(parts)

    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=varlen))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("form", ["mask", "lengths"])
@settings(max_examples=20)
@given(rows=ROWS)
def test_fused_kernels_agree_with_the_written_out_one(rows, form, dtype):
    ids = ids_of(rows)
    assert_like_eager(ids, attend(ids, form, "sdpa", dtype), dtype)


@pytest.mark.usefixtures("fake_flash_attn")
@pytest.mark.parametrize("rows", [[[9, 7, 5], [24]], [[], [1, 1, 1]]])
def test_flash_attn_is_given_the_sequences(rows):
    ids = ids_of(rows)
    assert_like_eager(ids, attend(ids, "starts", "flash_attention_2", torch.float32), torch.float32)


@pytest.mark.usefixtures("fake_flash_attn")
@pytest.mark.parametrize("name", ["sequence_ids", "attention_mask"])
def test_a_model_with_flash_attn_agrees_with_the_written_out_one(make_model, tokens, name):
    ids = ids_of([[9, 7, 5], [12, 12]])
    given = {name: ids if name == "sequence_ids" else ids.clamp(max=1)}
    flash, written_out = make_model(), make_model(attention="eager")
    flash.config._attn_implementation = "flash_attention_2"  # transformers would ask for the real package
    results = [model(tokens(2, SLOTS), **given).prediction_logits[ids > 0] for model in (flash, written_out)]
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rows", [[[9, 7, 5], [24]], [[], [1, 1, 1]]])
def test_the_flash_kernel_of_torch_agrees_with_the_written_out_one(rows):
    ids = ids_of(rows)
    assert_like_eager(ids, attend(ids, "starts", "sdpa", torch.bfloat16, "cuda"), torch.bfloat16)


@given(rows=ROWS)
def test_starts_are_where_numbers_change(rows):
    ids = ids_of(rows)
    expected = [
        i * SLOTS + j for i, row in enumerate(ids.tolist()) for j in range(SLOTS) if j == 0 or row[j - 1] != row[j]
    ]
    assert sequence_starts(ids).tolist() == [*expected, ids.numel()]


@pytest.mark.parametrize("given", [None, 8])
def test_given_starts_are_those_that_a_search_finds(make_model, tokens, given):
    ids = ids_of([[9, 7, 5], [12, 12]])
    starts = sequence_starts(ids).int()
    padded = torch.cat((starts, starts[-1].expand(given or 0)))
    model, inputs = make_model(), tokens(2, SLOTS)
    found, spared = (
        model(inputs, sequence_ids=ids, **known).prediction_logits for known in ({}, {"sequence_starts": padded})
    )
    assert torch.equal(found, spared)


def test_with_given_starts_nobody_waits_for_the_device(make_model, monkeypatch):
    model = make_model().train().to("meta", torch.bfloat16)  # where no tensor has a value to wait for
    monkeypatch.setattr(type(model.roformer), "_has_varlen_kernel", lambda _: True)
    ids = ids_of([[9, 7, 5], [12, 12]])
    inputs = {"input_ids": ids, "sequence_ids": ids, "sequence_starts": sequence_starts(ids).int()}
    output = model(**{name: value.to("meta") for name, value in inputs.items()})
    output.prediction_logits.sum().backward()
    assert model.roformer.embeddings.word_embeddings.weight.grad.device.type == "meta"


@pytest.mark.parametrize(
    ("starts", "said"),
    [
        ([0, 5, 24], "must rise from 0 to 48"),
        ([0, 30, 20, 48], "must rise from 0 to 48"),
        ([1, 48], "must rise from 0 to 48"),
        ([[0, 48]], "expected torch.int32"),
    ],
)
def test_starts_that_cannot_be_meant_are_refused(make_model, tokens, starts, said):
    with pytest.raises((ValueError, TypeError), match=said):
        make_model()(tokens(2, SLOTS), sequence_ids=ids_of([[24], [24]]), sequence_starts=torch.tensor(starts).int())
    with pytest.raises(ValueError, match="give both"):
        make_model()(tokens(2, SLOTS), sequence_starts=torch.tensor([0, 48]).int())


def test_a_sequence_in_two_pieces_is_attended_through_a_mask(make_model, tokens):
    ids = torch.tensor([[1, 1, 2, 2, 1, 0], [1, 1, 1, 2, 2, 2]])
    assert sequence_starts(ids) is None
    fused, written_out = (make_model(attention=name)(tokens(2, 6), sequence_ids=ids) for name in ("sdpa", "eager"))
    torch.testing.assert_close(fused.prediction_logits, written_out.prediction_logits, atol=1e-4, rtol=1e-4)


class SquareShapes(TorchDispatchMode):
    """Counts operations that return a tensor whose last two sizes are both ``slots``."""

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.slots, self.found = slots, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = (leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
        self.found += any(tensor.shape[-2:] == (self.slots, self.slots) for tensor in tensors)
        return result


@pytest.mark.parametrize(("attention", "is_square"), [("sdpa", False), ("eager", True)])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_packed_row_never_makes_a_square_of_its_slots(make_model, tokens, attention, is_square, dropout):
    model = make_model(attention=attention, attention_probs_dropout_prob=dropout).train()
    with SquareShapes(SLOTS) as shapes:
        model(tokens(2, SLOTS), sequence_ids=ids_of([[9, 7, 5], [12, 12]])).prediction_logits.sum().backward()
    assert (shapes.found > 0) == is_square


def test_where_sequences_begin_is_worked_out_once_for_all_layers(make_model, tokens, monkeypatch):
    calls = []
    monkeypatch.setattr(modeling, "sequence_starts", lambda ids: calls.append(ids) or sequence_starts(ids))
    make_model()(tokens(2, SLOTS), sequence_ids=ids_of([[9, 7, 5], [12, 12]]))
    assert len(calls) == 1


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rows_and_slots_of_padding_have_finite_outputs_and_gradients(make_model, tokens, attention):
    model = make_model(attention=attention).train()
    output = model(tokens(2, SLOTS), sequence_ids=ids_of([[], [9, 7]]))
    output.prediction_logits.square().mean().backward()
    assert output.prediction_logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.roformer.parameters())


def test_another_implementation_can_be_set_on_a_made_model(make_model, tokens):
    model, ids = make_model(attention="sdpa"), ids_of([[9, 7, 5], [12, 12]])
    model.set_attn_implementation("eager")
    with SquareShapes(SLOTS) as shapes:
        model(tokens(2, SLOTS), sequence_ids=ids)
    assert shapes.found > 0


def test_both_forms_of_the_rotation_agree(monkeypatch):
    x = torch.randn(2, 5, 3, 8, generator=torch.Generator().manual_seed(0))
    rotary = modeling.rotary_table(torch.randint(500, (2, 5)), 8, 10000.0)
    complex_numbers = modeling.apply_rope(x, rotary)
    monkeypatch.setattr(modeling, "_is_traced", lambda: True)
    torch.testing.assert_close(modeling.apply_rope(x, rotary), complex_numbers, atol=1e-6, rtol=0)
