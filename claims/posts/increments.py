"""Residual branches of size 1/√N make the first step of training lower the loss by as much at any depth."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from claims.claim import Bars, Claim, Figures, Found, Setting
from claims.training.encoders import masked_lm
from claims.verdict import Verdict, above, all_of, within

_SHALLOW, _DEEP, _WIDTH = 4, 32, 48
_SCALES = {"ε = 1": 0.0, "ε = 1/√N": 0.5, "ε = 1/N": 1.0}


class _Branches(nn.Module):
    """x ← x + ε W₂ relu(W₁ x), N times, of weights that keep the size of what they read; the network of the post."""

    def __init__(self, depth: int, epsilon: float, generator: torch.Generator) -> None:
        super().__init__()
        size = (2 / _WIDTH) ** 0.5
        draw = [
            nn.Parameter(size * torch.randn(_WIDTH, _WIDTH, generator=generator).double()) for _ in range(2 * depth)
        ]
        self.weights, self.epsilon = nn.ParameterList(draw), epsilon / 2**0.5

    def forward(self, x: Tensor) -> Tensor:
        """[n, width] -> [n, width]."""
        for first, second in zip(self.weights[::2], self.weights[1::2], strict=True):
            x = x + self.epsilon * torch.relu(x @ first.T) @ second.T
        return x


def first_step(depth: int, epsilon: float, seed: int) -> float:
    """Return by how much a tiny first step of gradient descent lowers a loss, over the learning rate: Σ‖g‖²."""
    generator = torch.Generator().manual_seed(seed)
    network = _Branches(depth, epsilon, generator)
    x, target = torch.randn(2, 64, _WIDTH, generator=generator).double()
    (network(x) * target).mean().backward()
    return math.fsum(weight.grad.square().sum().item() for weight in network.weights if weight.grad is not None)


def first_tiger_step(depth: int, init: str, seed: int) -> float:
    """Return the same of Tiger for our encoder: Σ RMS(W) ‖g‖₁ over feed-forward layers, in units of the word table."""
    torch.manual_seed(seed)
    model = masked_lm(layers=depth, hidden=64, vocab=64, intermediate_size=128, init=init).eval()
    tokens = torch.randint(0, 64, (8, 16))
    model(tokens, labels=tokens.roll(1, 1)).loss.backward()
    weights = [weight for name, weight in model.named_parameters() if ".dense." in name and ".attention." not in name]
    steps = (weight.square().mean().sqrt() * weight.grad.abs().sum() for weight in weights if weight.grad is not None)
    return math.fsum(step.item() for step in steps) / float(model.get_input_embeddings().weight.std().item())


def measure(seed: int, _: Setting) -> Figures:
    """Deep over shallow: 1 where depth does not matter."""
    figures = {}
    for name, power in _SCALES.items():
        deep, shallow = (first_step(depth, depth**-power, seed) for depth in (_DEEP, _SHALLOW))
        figures[name] = deep / shallow
    for name, init in {"Tiger, scaled weights": "depth_n", "Tiger, unscaled weights": "released"}.items():
        figures[name] = first_tiger_step(24, init, seed) / first_tiger_step(3, init, seed)
    return figures


def judge(found: Found) -> Verdict:
    """Explosion without a scale, the same size with 1/√N; 1/N is more than is needed."""
    return all_of(
        above([math.log10(ratio) for ratio in found["ε = 1"]], confirms=2.0, refutes=1.0),  # orders of magnitude
        within(found["ε = 1/√N"], 1 / 3, 3.0),
        within(found["Tiger, scaled weights"], 1 / 3, 3.0),
    )


CLAIM = Claim(
    name="increments",
    sentence="The first step lowers the loss by ever more the deeper the network is (increments explode); residual "
    "branches scaled by 1/√N make it the same at any depth.",
    source=8994,
    measured=f"How far a tiny first step of gradient descent lowers a loss, at N = {_DEEP} over N = {_SHALLOW}, for "
    "x + εf(x) without norms as in the post; and the same of Tiger for our post-norm encoder, N = 24 over 3, with "
    "weights scaled by depth and not.",
    refuted_if="without a scale the ratio is below 10, or with 1/√N it leaves 1/3 to 3, for the network of the post "
    "or for ours.",
    unit="times",
    shown=("ε = 1", "ε = 1/√N", "ε = 1/N", "Tiger, scaled weights", "Tiger, unscaled weights"),
    picture=Bars(
        (*_SCALES, "Tiger, scaled weights", "Tiger, unscaled weights"), "first step, deep / shallow", log=True, mark=1.0
    ),
    seconds=4,
    measure=measure,
    judge=judge,
)
