"""Gradient checkpointing (https://kexue.fm/archives/7367): less memory, the same numbers."""

from __future__ import annotations

import pytest
import torch

from kexue_train.model import RoFormerV2ForPreTraining


def loss_and_gradients(model: RoFormerV2ForPreTraining, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """One training step's loss and gradients, dropout on, with the random state of one fixed seed."""
    model.train()
    model.zero_grad()
    torch.manual_seed(7)
    loss = model(**inputs).loss
    loss.backward()
    return [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


@pytest.fixture
def inputs(tokens):
    """Tokens with labels for both heads."""
    return {
        "input_ids": tokens(3, 21),
        "labels": tokens(3, 21, seed=1),
        "next_sentence_label": torch.tensor([0, 1, 1]),
    }


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_loss_and_gradients_are_bit_equal_with_dropout(make_model, inputs, attention):
    model = make_model(attention=attention, gain=1.0)
    plain = loss_and_gradients(model, inputs)
    enable(model)
    recomputed = loss_and_gradients(model, inputs)
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))
    assert not torch.equal(plain[0], model.eval()(**inputs).loss)  # dropout was on


def test_every_layer_is_computed_twice(make_model, inputs):
    model, calls = make_model(), []
    for layer in model.roformer.encoder.layer:
        layer.intermediate.register_forward_hook(lambda module, *_: calls.append(module))
    loss_and_gradients(model, inputs)
    assert len(calls) == 3
    enable(model)
    calls.clear()
    loss_and_gradients(model, inputs)
    assert len(calls) == 6


def test_less_is_kept_for_backward(make_model, inputs):
    model = make_model()
    plain = bytes_kept(model, inputs)
    enable(model)
    assert bytes_kept(model, inputs) < plain / 2


def test_evaluation_is_not_touched(make_model, inputs):
    model = make_model()
    plain = model(**inputs).loss
    enable(model)
    assert torch.equal(model.eval()(**inputs).loss, plain)


def enable(model: RoFormerV2ForPreTraining) -> None:
    """Turn recomputation on, non-reentrant, by the name that this version of transformers has for it."""
    turn_on = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    turn_on({"use_reentrant": False})
    assert model.roformer._gradient_checkpointing_func.keywords["use_reentrant"] is False


def bytes_kept(model: RoFormerV2ForPreTraining, inputs: dict[str, torch.Tensor]) -> int:
    """Bytes that autograd saves during one forward pass, parameters aside."""
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        loss = model(**inputs).loss
    assert loss.requires_grad
    return sum(kept.values())
