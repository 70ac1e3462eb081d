"""Whether the gradients of the first layers of a fresh post-norm encoder vanish."""

from __future__ import annotations

import torch

from claims.claim import Claim, Figures, Found, Lines, Setting, at
from claims.training.encoders import masked_lm
from claims.verdict import Verdict, above, all_of

_DEPTH = 24
_LAYERS = (1, 6, 12, 18, 24)
_KINDS = {
    "post, unscaled": {"norm_placement": "post", "init": "released"},
    "post, scaled by depth": {"norm_placement": "post", "init": "depth_n"},
    "pre, unscaled": {"norm_placement": "pre", "init": "released"},
}


def measure(seed: int, _: Setting) -> Figures:
    """Norm of each layer's gradient over that of the last layer's."""
    figures: Figures = {}
    for name, options in _KINDS.items():
        norms = gradient_norms(options, seed)
        figures |= {at(name, layer): norms[layer - 1] / norms[-1] for layer in _LAYERS}
    return figures


def gradient_norms(options: dict[str, str], seed: int) -> list[float]:
    """Return the norm of the gradient of each layer of a fresh encoder."""
    torch.manual_seed(seed)
    model = masked_lm(layers=_DEPTH, hidden=128, vocab=1000, **options).eval()
    tokens = torch.randint(0, 1000, (4, 32))
    model(tokens, labels=torch.randint(0, 1000, (4, 32))).loss.backward()
    squares = [
        sum(weight.grad.square().sum().item() for weight in layer.parameters())
        for layer in model.roformer.encoder.layer
    ]
    return [square**0.5 for square in squares]


def judge(found: Found) -> Verdict:
    """What 2^(−l/2) per sublayer would leave of the first layer is 1e-7 of the last; a tenth is not vanishing."""
    shares = [1 / value for value in found[at("post, unscaled", 1)]]
    return all_of(above(shares, confirms=1000.0, refutes=10.0))


CLAIM = Claim(
    name="post-norm-gradients",
    sentence="In a fresh post-norm encoder every norm weakens the identity path by √2, so the gradients of the "
    "first layers vanish.",
    source=8620,
    measured=f"Norm of the gradient of each layer over that of the last one, {_DEPTH} × 128, before any training: "
    "post-norm with branches of the size of the path, with branches scaled by depth, and pre-norm.",
    refuted_if="the first layer has more than 1/10 of the last one's gradient; confirmed below 1/1000 (√2 for each "
    "of 47 sublayers would leave 1e-7).",
    unit="of the last layer's",
    shown=tuple(at(name, 1) for name in _KINDS),
    picture=Lines(
        tuple(_KINDS), tuple(map(float, _LAYERS)), "layer", "gradient / gradient of the last layer", log=True
    ),
    seconds=6,
    measure=measure,
    judge=judge,
    remark="The identity path does weaken, but the branches carry the gradient as well: a norm keeps its size. What "
    "is measured is the start; warm-up has other reasons too.",
)
