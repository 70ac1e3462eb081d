"""Statements that the design rests on: complete rotations (9403), increments (8994), small weights (8747)."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from kexue_train.model import RoFormerV2Config, RoFormerV2ForPreTraining
from kexue_train.model.modeling_roformer_v2 import RMSNorm, RoFormerV2Layer, apply_rope

SIZE = 8


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# Rotary positions lose nothing. Source: https://kexue.fm/archives/9403.


def commuting_skew(count: int, seed: int) -> list[Tensor]:
    """Skew-symmetric matrices that commute: odd polynomials of one, with random coefficients."""
    root = random(SIZE, SIZE, seed=seed)
    root = (root - root.T) / 2
    cube = root @ root @ root
    coefficients = random(count, 3, seed=seed + 1)
    return [a * root + 0.1 * b * cube + 0.01 * c * cube @ root @ root for a, b, c in coefficients]


def blocks_of(skew: list[Tensor], seed: int) -> tuple[Tensor, Tensor]:
    """An orthogonal P that cuts all of them into 2x2 blocks, and the angles [matrices, SIZE / 2]."""
    mixed = sum(c * matrix for c, matrix in zip(random(len(skew), seed=seed), skew, strict=True))
    _, vectors = torch.linalg.eigh(1j * mixed)  # Hermitian: eigenvalues ±θ, vectors in conjugate pairs
    half = vectors[:, : SIZE // 2]
    basis = torch.stack((half.real, half.imag), -1).flatten(1) * math.sqrt(2)
    turned = [basis.T @ matrix @ basis for matrix in skew]
    return basis, torch.stack([matrix.diagonal(-1)[::2] for matrix in turned])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("axes", [1, 2])
def test_any_positions_by_commuting_exponentials_are_rotary_ones_after_a_change_that_the_weights_absorb(seed, axes):
    skew = commuting_skew(axes, seed)
    places = random(10, axes, seed=seed + 2) * 5
    w_q, w_k, x = (random(SIZE, SIZE, seed=seed + 3), random(SIZE, SIZE, seed=seed + 4), random(10, SIZE, seed=seed))
    general = [torch.linalg.matrix_exp(sum(p * m for p, m in zip(place, skew, strict=True))) for place in places]
    q, k = x @ w_q.T, x @ w_k.T
    expected = torch.stack(
        [torch.stack([q[i] @ general[i].T @ general[j] @ k[j] for j in range(10)]) for i in range(10)]
    )

    basis, angles = blocks_of(skew, seed)
    torch.testing.assert_close(basis.T @ basis, torch.eye(SIZE, dtype=torch.float64))
    turns = places @ angles
    table = torch.stack((turns.cos(), turns.sin()), -1)[None, :, None]
    q, k = (apply_rope((x @ (basis.T @ w).T)[None, :, None], table)[0, :, 0] for w in (w_q, w_k))
    torch.testing.assert_close(q @ k.T, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_scores_depend_on_distances_alone_because_the_exponentials_are_orthogonal(seed):
    (skew,) = commuting_skew(1, seed)
    here, there = (torch.linalg.matrix_exp(n * skew) for n in (3.0, 7.5))
    torch.testing.assert_close(here.T @ there, torch.linalg.matrix_exp(4.5 * skew))


def test_a_feature_map_between_weights_and_rotation_breaks_the_absorption():
    basis, _ = blocks_of(commuting_skew(1, 0), 0)
    x = random(1, SIZE)
    assert ((F.elu(x) + 1) @ basis - (F.elu(x @ basis) + 1)).abs().max() > 0.1


# Residual branches of size 1/√N. Source: https://kexue.fm/archives/8994.


class Residual(nn.Module):
    """x ← x + ε W₂ relu(W₁ x), N times, of fresh weights that keep the size of what they read."""

    def __init__(self, depth: int, epsilon: float, width: int = 48) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        draw = lambda: nn.Parameter(torch.randn(width, width, generator=generator) * (2 / width) ** 0.5)  # noqa: E731
        self.weights, self.epsilon = nn.ParameterList(draw() for _ in range(2 * depth)), epsilon

    def forward(self, x: Tensor) -> Tensor:
        for first, second in zip(self.weights[::2], self.weights[1::2], strict=True):
            x = x + self.epsilon * torch.relu(x @ first.T) @ second.T / 2**0.5
        return x


def first_step(depth: int, epsilon: float, step: str = "sgd") -> float:
    """By how much the first tiny step of size η lowers a loss, over η."""
    net, generator = Residual(depth, epsilon).double(), torch.Generator().manual_seed(1)
    x, target = (torch.randn(64, 48, generator=generator, dtype=torch.float64) for _ in range(2))
    loss = (net(x) * target).mean()
    loss.backward()
    lr = 1e-7
    with torch.no_grad():
        for weight in net.weights:
            weight -= lr * (weight.grad if step == "sgd" else weight.grad.sign())
        return (loss - (net(x) * target).mean()).item() / lr


def test_unscaled_branches_explode_and_those_of_1_over_root_n_make_first_steps_of_one_size():
    small, large = 4, 32
    exploding = first_step(large, 1.0) / first_step(small, 1.0)
    scaled = first_step(large, large**-0.5) / first_step(small, small**-0.5)
    timid = first_step(large, 1 / large) / first_step(small, 1 / small)
    assert exploding > 1e3
    assert 1 / 2 < scaled < 2
    assert timid < 1 / 4  # 1/N is more than needed: the step shrinks with the depth


def test_steps_of_one_size_per_element_want_1_over_n():
    small, large = 4, 32
    growing = first_step(large, large**-0.5, "sign") / first_step(small, small**-0.5, "sign")
    even = first_step(large, 1 / large, "sign") / first_step(small, 1 / small, "sign")
    assert growing == pytest.approx((large / small) ** 0.5, rel=0.35)
    assert even == pytest.approx(1, rel=0.35)


def first_tiger_step(depth: int, init: str) -> float:
    """The first step of Tiger over the learning rate, to first order: Σ RMS(W) ‖∂L/∂W‖₁ over the feed-forward layers.

    In units of the word table's size, which the gradients of the states are in.
    """
    torch.manual_seed(0)
    config = RoFormerV2Config(
        vocab_size=64, hidden_size=64, num_hidden_layers=depth, num_attention_heads=2, intermediate_size=128, init=init
    )
    model = RoFormerV2ForPreTraining(config).eval()
    ids = torch.randint(0, 64, (8, 16))
    model(ids, labels=ids.roll(1, 1)).loss.backward()
    weights = [w for name, w in model.roformer.encoder.named_parameters() if ".attention." not in name]
    table = model.get_input_embeddings().weight
    return sum((w.square().mean().sqrt() * w.grad.abs().sum()).item() for w in weights) / table.std().item()


def test_at_our_initial_weights_the_first_step_of_tiger_is_the_same_at_any_depth():
    shallow, deep = (first_tiger_step(depth, "depth_n") for depth in (3, 24))
    assert deep / shallow == pytest.approx(1, rel=0.2)
    shallow, deep = (first_tiger_step(depth, "released") for depth in (3, 24))
    assert deep / shallow > 3


# Why 0.02, and what the transform of BERT's word head is for. Source: https://kexue.fm/archives/8747.


def test_a_normal_of_0_02_cut_at_two_sigma_is_half_of_the_usual_size():
    weights = nn.init.trunc_normal_(torch.empty(1000, 768), std=0.02, a=-0.04, b=0.04)
    assert weights.std().item() == pytest.approx(0.0176, rel=0.005)
    assert weights.std().item() * math.sqrt(768) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("std", "expected"), [(0.0176, 0.337), (768**-0.5, 2**0.5)])
def test_small_weights_leave_a_post_norm_layer_close_to_the_identity(std, expected):
    # Norm(x + F(x)) divides by √(1 + σ_F²), where σ_F² = 3072 · std² · (768 · std²) / 2 behind a ReLU.
    torch.manual_seed(0)
    config = RoFormerV2Config(num_hidden_layers=1, num_attention_heads=12)
    layer = RoFormerV2Layer(config).eval()
    for weight in layer.parameters():
        nn.init.normal_(weight, std=std)
    x = RMSNorm(1e-12)(torch.randn(256, 768))
    with torch.no_grad():
        branch = layer.output(layer.intermediate(x))
        share = (layer.norm(x + branch) * x).mean().item()
    assert branch.std().item() == pytest.approx(expected, rel=0.03)
    assert share == pytest.approx(1 / math.sqrt(1 + expected**2), rel=0.03)


def grown_gains(transform: bool, seed: int) -> tuple[float, float]:
    """Gains of the encoder's last norm and of the word head's own after some steps of Adam from logits near 0."""
    torch.manual_seed(seed)
    width, words = 32, 64
    states = F.rms_norm(torch.randn(words, width), (width,))
    table = nn.Parameter(0.02 * torch.randn(words, width))
    gain, own, dense = (nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width)), nn.Linear(width, width))
    nn.init.normal_(dense.weight, std=0.02)
    optimizer = torch.optim.Adam([table, gain, own, *dense.parameters()], lr=1e-2)
    for _ in range(60):
        chosen = torch.randint(0, words, (16,))
        x = states[chosen] * gain
        if transform:
            x = F.rms_norm(F.gelu(dense(x)), (width,)) * own
        optimizer.zero_grad()
        F.cross_entropy(x @ table.T, chosen).backward()
        optimizer.step()
    return gain.abs().mean().item(), own.abs().mean().item()


@pytest.mark.parametrize("seed", range(3))
def test_a_transform_takes_the_growth_of_logits_from_the_last_norm_of_the_encoder(seed):
    alone, _ = grown_gains(transform=False, seed=seed)
    spared, own = grown_gains(transform=True, seed=seed)
    assert alone > 1.1
    assert own > 1.1
    assert abs(spared - 1) < (alone - 1) / 2


def test_our_model_has_no_gain_so_only_tables_and_matrices_can_grow():
    config = RoFormerV2Config(vocab_size=2000, hidden_size=96, num_hidden_layers=2, num_attention_heads=2)
    model = RoFormerV2ForPreTraining(config)
    assert all(parameter.ndim == 2 for parameter in model.parameters())
