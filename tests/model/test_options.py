"""Gated feed-forward layers, norm placement and the ramp of the branches: against the formulas, and as properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kexue_train.model import RoFormerV2Config, RoFormerV2ForMaskedLM, RoFormerV2ForPreTraining
from kexue_train.model.config import ModelConfig
from kexue_train.model.hf_folder import build_hf_config
from kexue_train.model.modeling_roformer_v2 import RMSNorm, set_residual_scale
from tests.reference import roformer_v2_numpy as reference

ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0.0),
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "linear": lambda x: x,
}


def encode(model, ids, *, feed_forward, is_pre=False, alpha=1.0):
    """Hidden states of one row in float64: x = Norm(x + alpha F(x)), or x + alpha F(Norm(x)) and a last norm."""
    weights = {name.removeprefix("roformer."): tensor.double().numpy() for name, tensor in model.state_dict().items()}
    positions, visible = np.arange(len(ids)), np.ones((len(ids), len(ids)), bool)
    x = weights["embeddings.word_embeddings.weight"][ids] + weights["embeddings.token_type_embeddings.weight"][0]
    x = reference.rms_norm(x)
    for index in range(model.config.num_hidden_layers):
        layer = f"encoder.layer.{index}"
        for branch in (
            lambda y, at=f"{layer}.attention": reference.attention(
                y, weights, at, model.config.num_attention_heads, positions, visible
            ),
            lambda y, at=layer: feed_forward(weights, at, y),
        ):
            added = x + alpha * branch(reference.rms_norm(x) if is_pre else x)
            x = added if is_pre else reference.rms_norm(added)
    return reference.rms_norm(x) if is_pre else x


def ungated(name):
    def feed_forward(weights, layer, x):
        inner = ACTIVATIONS[name](x @ weights[f"{layer}.intermediate.dense.weight"].T)
        return inner @ weights[f"{layer}.output.dense.weight"].T

    return feed_forward


plain = ungated("relu")


def gated(first, second):
    def feed_forward(weights, layer, x):
        left, right = (x @ weights[f"{layer}.intermediate.{name}.weight"].T for name in ("dense", "dense_2"))
        inner = ACTIVATIONS[first](left) * ACTIVATIONS[second](right)
        return inner @ weights[f"{layer}.output.dense.weight"].T

    return feed_forward


def assert_encodes(model, input_ids, **formula):
    hidden = model.roformer(input_ids).last_hidden_state.detach().numpy()
    for row, ids in zip(hidden, input_ids.numpy(), strict=True):
        np.testing.assert_allclose(row, encode(model, ids, **formula), atol=2e-5, rtol=0)


@pytest.mark.parametrize(("first", "second"), [(name, "linear") for name in ACTIVATIONS] + [("silu", "tanh")])
def test_a_gated_layer_is_the_product_of_two_activated_kernels(make_model, tokens, first, second):
    model = make_model(hidden_act=[first, second], gain=1.5)
    assert_encodes(model, tokens(2, 11), feed_forward=gated(first, second))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_layer_without_a_gate_has_any_activation(make_model, tokens, name):
    model = make_model(hidden_act=name, gain=1.5)
    assert_encodes(model, tokens(2, 11), feed_forward=ungated(name))


def test_a_gated_layer_has_one_more_kernel_and_no_bias(make_model):
    plain_names = make_model().state_dict().keys()
    more = make_model(hidden_act=["gelu", "linear"]).state_dict().keys() - plain_names
    assert more == {f"roformer.encoder.layer.{index}.intermediate.dense_2.weight" for index in range(3)}


@pytest.mark.parametrize(
    ("layers", "hidden", "heads", "plain_parameters"),
    [(6, 384, 6, 15_225_600), (12, 768, 12, 94_152_192), (24, 1024, 16, 314_279_936)],
    ids=["small", "base", "large"],
)
def test_only_a_gate_adds_parameters_to_the_published_number(layers, hidden, heads, plain_parameters):
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}

    def count(**options):
        with torch.device("meta"):
            model = RoFormerV2ForMaskedLM(RoFormerV2Config(**sizes, intermediate_size=4 * hidden, **options))
        return sum(parameter.numel() for parameter in model.parameters())

    assert count() == count(norm_placement="pre") == count(init="released") == plain_parameters
    assert count(hidden_act=["gelu", "linear"]) == plain_parameters + layers * 4 * hidden**2


def test_pre_norm_equals_the_formula(make_model, tokens):
    model = make_model(norm_placement="pre")
    assert_encodes(model, tokens(2, 11), feed_forward=plain, is_pre=True)
    output = model.roformer(tokens(2, 11), output_hidden_states=True)
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert len(output.hidden_states) == 4


def with_random_branches(model):
    """Replace every branch by fresh noise of variance 1, as the analysis of norm placement supposes."""
    for number, layer in enumerate(model.roformer.encoder.layer):
        for offset, part in enumerate((layer.attention, layer.output)):
            generator = torch.Generator().manual_seed(2 * number + offset)
            part.forward = lambda x, *_, g=generator: torch.randn(*x.shape[:2], 256, generator=g)
    return model


WIDE = {"hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 8, "hidden_dropout_prob": 0.0}


def test_post_norm_halves_the_share_of_the_beginning_with_every_branch(make_model, tokens):
    """Norm(x + F) with branches of variance 1 divides by √2 each time: x₀ is left with 2^(-t/2) after t of them."""
    model = with_random_branches(make_model(**WIDE))
    states = model.roformer(tokens(4, 64), output_hidden_states=True).hidden_states
    shares = [(state * states[0]).mean().item() for state in states]
    assert shares == pytest.approx([2.0**-layer for layer in range(9)], abs=0.03)


def test_pre_norm_adds_up_variances(make_model, tokens):
    """x + F(Norm(x)) with branches of variance 1 has variance t + 1 after t of them, and x₀ stays whole in it."""
    model = with_random_branches(make_model(norm_placement="pre", **WIDE))
    states = model.roformer(tokens(4, 64), output_hidden_states=True).hidden_states[:-1]
    assert [state.var().item() for state in states] == pytest.approx([2 * i + 1 for i in range(8)], rel=0.03)
    assert [(state * states[0]).mean().item() for state in states] == pytest.approx([1.0] * 8, abs=0.05)


@pytest.mark.parametrize("placement", ["post", "pre"])
@pytest.mark.parametrize("alpha", [0.125, 0.7])
def test_the_ramp_scales_every_branch(make_model, tokens, placement, alpha):
    model = make_model(norm_placement=placement)
    set_residual_scale(model, alpha)
    assert_encodes(model, tokens(2, 11), feed_forward=plain, is_pre=placement == "pre", alpha=alpha)


def test_at_alpha_0_the_network_is_its_embedding_and_learns_nothing(make_model, tokens):
    model = make_model()
    set_residual_scale(model, 0.0)
    hidden = model.roformer(tokens(2, 9), output_hidden_states=True).hidden_states
    torch.testing.assert_close(hidden[-1], hidden[0], atol=1e-6, rtol=1e-6)
    model(tokens(2, 9), labels=tokens(2, 9)).loss.backward()
    assert not model.roformer.encoder.layer[1].output.dense.weight.grad.any()
    assert model.get_input_embeddings().weight.grad.any()


def test_at_alpha_1_the_network_is_the_plain_one_bit_for_bit(make_model, tokens):
    model, never_scaled = make_model().train(), make_model().train()
    for alpha in (0.25, 0.5, 1.0):
        set_residual_scale(model, alpha)
        outputs = []
        for each in (model, never_scaled):
            torch.manual_seed(5)
            each.zero_grad()
            output = each(tokens(2, 9), labels=tokens(2, 9), next_sentence_label=torch.tensor([0, 1]))
            output.loss.backward()
            outputs.append([output.prediction_logits, *(parameter.grad for parameter in each.parameters())])
        assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True)) == (alpha == 1.0)


def test_the_ramp_is_no_part_of_the_model(make_model, tokens, tmp_path):
    model, plain_model = make_model(), make_model()
    set_residual_scale(model, 0.1)
    assert model.state_dict().keys() == plain_model.state_dict().keys()
    model.save_pretrained(tmp_path)
    loaded = RoFormerV2ForPreTraining.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(tokens(1, 9)).prediction_logits, plain_model(tokens(1, 9)).prediction_logits)


def test_the_ramp_keeps_its_tensor_so_that_compiled_code_stays_valid(make_model):
    model = make_model()
    set_residual_scale(model, 0.1)
    before = [layer.residual_scale for layer in model.roformer.encoder.layer]
    set_residual_scale(model, 0.2)
    after = [layer.residual_scale for layer in model.roformer.encoder.layer]
    assert all(a is b for a, b in zip(before, after, strict=True))
    assert [float(a) for a in after] == pytest.approx([0.2] * 3)


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_a_scale_out_of_range_is_refused(make_model, alpha):
    with pytest.raises(ValueError, match=f"alpha={alpha}.*from 0 to 1"):
        set_residual_scale(make_model(), alpha)


def test_rms_norm_twice_is_once():
    x, norm = torch.randn(5, 64), RMSNorm(1e-12)
    torch.testing.assert_close(norm(norm(x)), norm(x), atol=1e-6, rtol=1e-6)


def test_the_section_of_a_run_becomes_the_configuration():
    values = {"hidden_act": ["gelu", "linear"], "norm_placement": "pre", "init": "geometric"}
    config = build_hf_config(ModelConfig.parse(values, where="test"), vocab_size=50)
    assert {name: getattr(config, name) for name in values} == values
    assert build_hf_config(ModelConfig(), vocab_size=50).hidden_act == "relu"
