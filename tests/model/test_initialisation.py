"""Weights at the start: their size by role, and what the whole network then computes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads

from kexue_train.model import RoFormerV2Config, RoFormerV2ForMaskedLM, RoFormerV2ForPreTraining, RoFormerV2Model
from kexue_train.model.modeling_roformer_v2 import set_residual_scale

TRUE_OVER_SIGMA = math.sqrt(0.7737413)  # std of a standard normal cut at ±2


@pytest.mark.parametrize("vocab_size", [4, 50, 12000], ids=["four words", "fifty words", "released"])
def test_std_is_one_over_root_of_depth_times_fan_in(vocab_size):
    torch.manual_seed(0)
    config = RoFormerV2Config(
        vocab_size=vocab_size, hidden_size=128, num_hidden_layers=4, num_attention_heads=2, intermediate_size=512
    )
    for name, weight in RoFormerV2ForPreTraining(config).state_dict().items():
        # Only the second feed-forward kernel reads something else than the hidden size; a table's fan is its width.
        fan = 512 if ".output.dense" in name and "attention" not in name else 128
        expected = 4**-0.5 * fan**-0.5
        # The standard error of an estimated std of n cut normals is about 0.55/sqrt(n).
        assert weight.std().item() == pytest.approx(expected, rel=5 * 0.55 / math.sqrt(weight.numel())), name
        assert abs(weight.mean().item()) < 5 * expected / math.sqrt(weight.numel()), name


def test_values_are_cut_at_two_sigma(tiny_config):
    for name, weight in RoFormerV2ForPreTraining(tiny_config).state_dict().items():
        fan = weight.shape[1]
        sigma = (3 * fan) ** -0.5 / TRUE_OVER_SIGMA
        assert weight.abs().max().item() <= 2 * sigma * (1 + 1e-6), name
        assert weight.abs().max().item() > 1.8 * sigma or weight.numel() < 500, name


def test_the_seed_decides_the_weights(tiny_config):
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(RoFormerV2ForPreTraining(tiny_config).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not any(torch.equal(states[0][name], states[2][name]) for name in states[0])


def variance(init: str, m: int, n: int, layers: int) -> float:
    """Of a kernel that reads m numbers and writes n."""
    return {
        "depth_n": 1 / (layers * m),
        "depth_2n": 1 / (2 * layers * m),
        "released": 1 / m,
        "arithmetic": 2 / (m + n) / layers,
        "geometric": 1 / math.sqrt(m * n) / layers,
        "quadratic": (m + n) / (m**2 + n**2) / layers,
    }[init]


@pytest.mark.parametrize("init", ["depth_n", "depth_2n", "released", "arithmetic", "geometric", "quadratic"])
def test_each_init_has_its_variance_and_is_cut_at_two_sigma(init):
    torch.manual_seed(0)
    config = RoFormerV2Config(
        vocab_size=300, hidden_size=128, num_hidden_layers=4, num_attention_heads=2, intermediate_size=512, init=init
    )
    for name, weight in RoFormerV2ForMaskedLM(config).state_dict().items():
        n, m = weight.shape
        if "embeddings" in name or "decoder" in name:  # a table's fan is its width, in every variant
            n = m
        expected = math.sqrt(variance(init, m, n, 4))
        assert weight.std().item() == pytest.approx(expected, rel=5 * 0.55 / math.sqrt(weight.numel())), name
        assert weight.abs().max().item() <= 2 * expected / TRUE_OVER_SIGMA * (1 + 1e-6), name


@pytest.mark.parametrize(
    ("init", "std", "gain"),
    [("arithmetic", 0.0228, 0.64), ("geometric", 0.0255, 1.00), ("quadratic", 0.0196, 0.346), ("depth_n", 0.0361, 1.0)],
)
def test_a_down_and_up_pair_has_the_published_gain(init, std, gain):
    """768 to 3072 and back, without an activation: E‖xW₁W₂‖² / ‖x‖² by the published table."""
    torch.manual_seed(0)
    layer = RoFormerV2Model(RoFormerV2Config(vocab_size=4, num_hidden_layers=1, init=init)).encoder.layer[0]
    up, down = layer.intermediate.dense.weight, layer.output.dense.weight
    x = torch.randn(64, 768)
    assert up.std().item() == pytest.approx(std, abs=1e-4)
    assert ((x @ up.T @ down.T).square().sum() / x.square().sum()).item() == pytest.approx(gain, rel=0.03)


@pytest.mark.parametrize(
    ("layers", "half_as_deep", "as_bert4keras"), [(6, 0.289, 0.408), (12, 0.204, 0.289), (24, 0.144, 0.204)]
)
def test_depth_factors_are_the_published_ones(layers, half_as_deep, as_bert4keras):
    def factor(init):
        torch.manual_seed(0)
        sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": layers, "intermediate_size": 64}
        model = RoFormerV2Model(RoFormerV2Config(vocab_size=4, init=init, **sizes))
        kernels = [weight for name, weight in model.named_parameters() if "encoder" in name]
        return torch.cat([kernel.flatten() for kernel in kernels]).std().item() * 64**0.5

    assert factor("depth_2n") == pytest.approx(half_as_deep, rel=0.01)
    assert factor("depth_n") == pytest.approx(as_bert4keras, rel=0.01)
    assert factor("released") == pytest.approx(1, rel=0.01)


# Measured by others with weights of their own: cost of a [MASK], cost of an unchanged token, cos(x₀, x_L).
SIZES = [(6, 384, (9.46, 4.6, 0.91)), (12, 768, (9.37, 4.1, 0.96)), (24, 1024, (9.36, 4.9, 0.98))]


@pytest.mark.parametrize(
    ("layers", "hidden", "published"),
    [SIZES[0], *(pytest.param(*size, marks=pytest.mark.slow) for size in SIZES[1:])],
    ids=["small", "base", "large"],
)
def test_a_fresh_network_is_almost_the_identity(layers, hidden, published):
    """The published sizes start with the published losses and cos(x₀, x_L), which only depth-scaled weights give.

    Near the identity the logit of the token itself is z = d·σ/√2 with σ = N^(-1/2)/√d, the √2 from the segment row,
    so a [MASK] costs log(e^z + V - 1) and an unchanged token z less. Deeper layers blur this by up to 1 nat.
    """
    loss, masked, cosine = start(layers, hidden)
    z = math.sqrt(hidden / layers / 2)
    assert z == pytest.approx({6: 5.66, 12: 5.66, 24: 4.62}[layers], abs=0.005)
    assert math.log(math.exp(z) + 12000 - 1) == pytest.approx({6: 9.42, 12: 9.42, 24: 9.40}[layers], abs=0.005)
    assert loss[masked].mean().item() == pytest.approx(published[0], abs=0.1)
    assert loss[~masked].mean().item() == pytest.approx(published[1], abs=0.4)
    assert cosine == pytest.approx(published[2], abs=0.02)


def test_without_the_depth_factor_the_beginning_is_lost_and_the_ramp_brings_it_back():
    loss, masked, cosine = start(6, 384, init="released")
    assert abs(cosine) < 0.25  # 0.1 by the published table, and it varies by as much with the seed
    assert 9.5 < loss[masked].mean().item() < 10.2
    assert 8.5 < loss[~masked].mean().item() < 10.2
    assert start(6, 384, init="released", alpha=0.02)[2] > 0.99


def start(layers, hidden, *, alpha=1.0, **options):
    """Loss of each of 1024 tokens of a fresh model, which of them are masked, and the mean cos(x₀, x_L)."""
    torch.manual_seed(0)
    config = RoFormerV2Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
        **options,
    )
    model = RoFormerV2ForMaskedLM(config).eval()
    set_residual_scale(model, alpha)
    targets = torch.randint(104, 12000, (8, 128))
    masked = torch.rand(8, 128) < 0.15
    with torch.no_grad():
        output = model(torch.where(masked, 103, targets), output_hidden_states=True)
    loss = F.cross_entropy(output.logits.flatten(0, 1), targets.flatten(), reduction="none").view(8, 128)
    cosine = F.cosine_similarity(output.hidden_states[0], output.hidden_states[-1], dim=-1).mean().item()
    return loss, masked, cosine
