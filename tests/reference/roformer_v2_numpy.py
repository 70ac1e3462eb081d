"""RoFormerV2's forward pass in NumPy float64, written from the published formulas, one head and one row at a time.

Source: https://kexue.fm/archives/8998 and https://kexue.fm/archives/8265 (rotary positions as complex numbers).
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def rms_norm(x: Array, eps: float = 1e-12) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def rotate(x: Array, positions: NDArray[np.int64], base: float = 10000.0) -> Array:
    """Multiply the pair (x₂ᵢ, x₂ᵢ₊₁) of ``x`` [S, D], read as a complex number, by exp(i · position · base^(-2i/D))."""
    pairs = x[:, 0::2] + 1j * x[:, 1::2]
    theta = base ** (-2.0 * np.arange(pairs.shape[1]) / x.shape[1])
    turned = pairs * np.exp(1j * np.outer(positions, theta))
    return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)


def softmax(scores: Array) -> Array:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def attention(
    x: Array, weights: Mapping[str, Array], prefix: str, num_heads: int, positions: NDArray[np.int64], visible: Array
) -> Array:
    """Self-attention of one row [S, E]; ``visible`` [S, S] says which key (column) a query (row) may see."""
    q, k, v = (x @ weights[f"{prefix}.self.{name}.weight"].T for name in ("query", "key", "value"))
    size = x.shape[1] // num_heads
    heads = []
    for head in range(num_heads):
        part = slice(head * size, (head + 1) * size)
        scores = rotate(q[:, part], positions) @ rotate(k[:, part], positions).T / np.sqrt(size)
        heads.append(softmax(np.where(visible, scores, -np.inf)) @ v[:, part])
    return np.concatenate(heads, axis=-1) @ weights[f"{prefix}.output.dense.weight"].T


def encode_row(
    weights: Mapping[str, Array],
    input_ids: NDArray[np.int64],
    *,
    num_layers: int,
    num_heads: int,
    segments: NDArray[np.int64],
    positions: NDArray[np.int64],
    visible: Array,
) -> Array:
    """Hidden states [S, E] of one row of tokens."""
    x = weights["embeddings.word_embeddings.weight"][input_ids]
    x = rms_norm(x + weights["embeddings.token_type_embeddings.weight"][segments])
    for index in range(num_layers):
        layer = f"encoder.layer.{index}"
        x = rms_norm(x + attention(x, weights, f"{layer}.attention", num_heads, positions, visible))
        inner = np.maximum(x @ weights[f"{layer}.intermediate.dense.weight"].T, 0.0)
        x = rms_norm(x + inner @ weights[f"{layer}.output.dense.weight"].T)
    return x


def mlm_logits(weights: Mapping[str, Array], hidden: Array) -> Array:
    """[S, V]: the word table is the output projection."""
    return hidden @ weights["embeddings.word_embeddings.weight"].T


def nsp_logits(dense: Array, classifier: Array, hidden: Array) -> Array:
    """[2] from the state of the first token."""
    return np.tanh(hidden[0] @ dense.T) @ classifier.T
