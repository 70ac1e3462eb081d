"""Gradient checkpointing (https://kexue.fm/archives/7367): less memory, the same numbers."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy

from kexue_train.model import RoFormerV2ForPreTraining
from kexue_train.model import modeling_roformer_v2 as modeling
from kexue_train.model.recompute import KeepWhatIsDear, compile_layers, enable_recompute

MODES = {"full": ("full", 1), "selective": ("selective", 1), "every 2": ("full", 2)}
LAYERS = 3


def loss_and_gradients(
    model: RoFormerV2ForPreTraining,
    inputs: dict[str, torch.Tensor],
    precision: AbstractContextManager[object] | None = None,
) -> list[torch.Tensor]:
    """One training step's loss and gradients, dropout on, with the random state of one fixed seed."""
    model.train()
    model.zero_grad()
    torch.manual_seed(7)
    with precision or nullcontext():
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


@pytest.fixture
def packed(inputs):
    """The same as packed rows with padding."""
    numbers = [[1] * 10 + [2] * 8 + [0] * 3, [1] * 21, [1] * 2 + [2] * 15 + [3] * 4]
    return inputs | {"sequence_ids": torch.tensor(numbers)}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "autocast"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("mode", MODES)
def test_every_way_to_recompute_keeps_every_bit(make_model, packed, mode, dropout, attention, dtype):
    probabilities = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": dropout}
    model, kind = make_model(attention=attention, gain=1.0, **probabilities), MODES[mode]
    autocast = {"device_type": "cpu", "dtype": dtype, "enabled": dtype is not None}
    plain = loss_and_gradients(model, packed, torch.autocast(**autocast))
    enable_recompute(model.roformer, kind[0], every=kind[1])
    recomputed = loss_and_gradients(model, packed, torch.autocast(**autocast))
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at every tensor's
@pytest.mark.parametrize("mode", MODES)
def test_compiled_layers_recompute_the_same_bits(make_model, packed, mode):
    plain, recomputing = make_model(gain=1.0), make_model(gain=1.0)
    enable_recompute(recomputing.roformer, MODES[mode][0], every=MODES[mode][1])
    for model in (plain, recomputing):
        compile_layers(model.roformer, backend="aot_eager")
    pairs = zip(loss_and_gradients(plain, packed), loss_and_gradients(recomputing, packed), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


class Products(TorchDispatchMode):
    """Counts matrix products of linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.mm.default
        return func(*args, **(kwargs or {}))


def products(model: RoFormerV2ForPreTraining, packed: dict[str, torch.Tensor]) -> int:
    with Products() as found:
        loss_and_gradients(model, packed)
    return found.count


def test_selective_multiplies_one_matrix_in_six_again(make_model, packed):
    model = make_model()
    plain = products(model, packed)
    enable_recompute(model.roformer, "selective")
    assert products(model, packed) == plain + LAYERS
    enable_recompute(model.roformer, "full")
    assert products(model, packed) == plain + 6 * LAYERS


@pytest.mark.parametrize("mode", [None, *MODES])
def test_one_product_for_queries_keys_and_values_has_the_numbers_of_three(make_model, packed, monkeypatch, mode):
    model = make_model(gain=1.0)
    if mode:
        enable_recompute(model.roformer, MODES[mode][0], every=MODES[mode][1])
    three, three_products = loss_and_gradients(model, packed), products(model, packed)
    monkeypatch.setattr(modeling, "_ONE_PRODUCT", {"cpu"})
    for one, of_three in zip(loss_and_gradients(model, packed), three, strict=True):
        torch.testing.assert_close(one, of_three, atol=1e-5, rtol=1e-4)
    saved = 2 * {None: 3, "selective": 3, "full": 4, "every 2": 3}[mode] * LAYERS
    saved += 2 * 2 if mode == "every 2" else 0  # layers 0 and 2
    assert products(model, packed) == three_products - saved


def test_a_layer_around_a_projection_takes_part(make_model, tokens, monkeypatch):
    monkeypatch.setattr(modeling, "_ONE_PRODUCT", {"cpu"})
    model, calls = make_model(), []
    model.roformer.encoder.layer[1].attention.self.key.register_forward_hook(lambda *_: calls.append(1))
    model(tokens(2, 8))
    assert calls == [1]


def test_fused_attention_is_kept_unless_it_draws_random_numbers():
    flash, context = torch.ops.aten._flash_attention_forward.default, type("Context", (), {"is_recompute": False})
    call = (*[torch.zeros(1)] * 5, 8, 8)
    policies = [KeepWhatIsDear()(context, flash, *call, dropout, False, False) for dropout in (0.0, 0.1)]
    assert policies == [CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_RECOMPUTE]


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


def test_transformers_recomputes_every_nth_layer(make_model, inputs):
    model = make_model()
    if not hasattr(model, "activation_checkpointing_enable"):
        pytest.skip("this version of transformers recomputes all layers or none")
    every_second = make_model()
    enable_recompute(every_second.roformer, "full", every=2)
    model.activation_checkpointing_enable(every_n_layers=2)
    assert bytes_kept(model, inputs) == bytes_kept(every_second, inputs)


def test_less_is_kept_for_backward(make_model, inputs):
    model = make_model()
    plain = bytes_kept(model, inputs)
    enable(model)
    assert bytes_kept(model, inputs) < plain / 2


def test_every_second_layer_saves_less_than_every_layer(make_model, inputs):
    kept = []
    for every in (3, 2, 1):  # of three layers: the first, the first and the last, all
        model = make_model()
        enable_recompute(model.roformer, "full", every=every)
        kept.append(bytes_kept(model, inputs))
    assert kept[0] > kept[1] > kept[2]


def test_evaluation_is_not_touched(make_model, inputs):
    model = make_model()
    plain = model(**inputs).loss
    enable(model)
    assert torch.equal(model.eval()(**inputs).loss, plain)


def enable(model: RoFormerV2ForPreTraining) -> None:
    """Turn recomputation on, non-reentrant, by the name that this version of transformers has for it."""
    turn_on = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    turn_on({"use_reentrant": False})
    for layer in model.roformer.encoder.layer:
        assert layer._gradient_checkpointing_func.keywords["use_reentrant"] is False


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
