"""Weights at the start: their size by role, and what the whole network then computes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads

from kexue_train.model import RoFormerV2Config, RoFormerV2ForMaskedLM, RoFormerV2ForPreTraining

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


def test_a_fresh_network_is_almost_the_identity():
    """The small size starts with the published losses and cos(x₀, x_L), which only depth-scaled weights give.

    Near the identity the logit of the token itself is z = d·σ/√2 with σ = N^(-1/2)/√d, the √2 from the segment row,
    so a [MASK] costs log(e^z + V - 1) and an unchanged token z less. Deeper layers blur this by up to 1 nat.
    """
    torch.manual_seed(0)
    config = RoFormerV2Config(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536, vocab_size=12000
    )
    model = RoFormerV2ForMaskedLM(config).eval()
    targets = torch.randint(104, 12000, (16, 128))
    masked = torch.rand(16, 128) < 0.15
    with torch.no_grad():
        output = model(torch.where(masked, 103, targets), output_hidden_states=True)
    loss = F.cross_entropy(output.logits.flatten(0, 1), targets.flatten(), reduction="none").view(16, 128)
    cosine = F.cosine_similarity(output.hidden_states[0], output.hidden_states[-1], dim=-1).mean().item()
    z = 384 * 6**-0.5 * 384**-0.5 / math.sqrt(2)
    start = math.log(math.exp(z) + 12000 - 1)
    assert (z, start) == pytest.approx((5.66, 9.42), abs=0.005)
    # Measured by others with weights of their own: 9.46, 4.6 and 0.91; without N^(-1/2): 9.7 to 10, 9 to 10 and 0.1.
    assert loss[masked].mean().item() == pytest.approx(9.46, abs=0.1)
    assert loss[~masked].mean().item() == pytest.approx(4.6, abs=0.4)
    assert cosine == pytest.approx(0.91, abs=0.02)
