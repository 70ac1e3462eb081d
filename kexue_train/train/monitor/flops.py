"""How much arithmetic training takes, by one rule; how fast this device does arithmetic; the share of it that is used.

The rule (MFU: https://arxiv.org/abs/2204.02311, appendix B): forward and backward together, per real token,

    6 · N_linear + 12 · L · h · s_eff + 6 · (h · V + h²) · p_masked

with the weights of the layers, the mean length of the sequence a token is in, and the share of tokens predicted. In a
window a token sees the window and itself at most; linear attention does as much as if a token saw one head's size.
Padding, recomputation and the optimizer count for nothing, nor do slots of the heads that are not used.
"""

from __future__ import annotations

import re
import time
from typing import NamedTuple, assert_never

import torch
import torch.distributed as dist

from kexue_train.model.config import ModelConfig
from kexue_train.train.data import synchronize
from kexue_train.train.distributed import sum_over_ranks

_LONG_ENOUGH_SECONDS, _MEASURE_SECONDS = 0.02, 0.3
_SMALLEST, _LARGEST = 512, 8192


class FlopRule(NamedTuple):
    """Floating-point operations of one model, by what they grow with."""

    per_token: int
    """6 · N_linear."""
    per_seen_token: int
    """12 · L · h: per token and token it attends to, itself included."""
    per_prediction: int
    """6 · (h · V + h²). The square is that of BERT's head, kept so that models compare; ours has it in the NSP head."""
    most_seen: int | None = None
    """Tokens that one token sees at most."""
    always_seen: int | None = None
    """Tokens that one counts as seeing, whatever the length."""

    def flops(self, tokens: float, seen_tokens: float, predictions: float) -> float:
        """Return those of so many real tokens that see ``seen_tokens`` in all (Σ length² over the sequences)."""
        if self.always_seen is not None:
            seen_tokens = tokens * self.always_seen
        elif self.most_seen is not None:
            seen_tokens = min(seen_tokens, tokens * self.most_seen)
        return self.per_token * tokens + self.per_seen_token * seen_tokens + self.per_prediction * predictions

    def per_token_of(self, *, mean_length: float, predicted_share: float) -> float:
        """Return those of one token, where a token is in a sequence of ``mean_length`` (Σ length² / Σ length)."""
        return self.flops(1, mean_length, predicted_share)


def flop_rule(model: ModelConfig, vocab_size: int) -> FlopRule:
    """Return the rule for a model of this size."""
    width, layers = model.hidden_size, model.num_hidden_layers
    feed_forward = 2 if isinstance(model.hidden_act, str) else 3
    linear = layers * (_attention_weights(model) + feed_forward * width * model.intermediate_size)
    return FlopRule(
        6 * linear,
        12 * layers * width,
        6 * (width * vocab_size + width**2),
        most_seen=model.attention_window and 2 * (model.attention_window // 2) + 1,
        always_seen=width // model.num_attention_heads if model.attention == "linear" else None,
    )


def _attention_weights(model: ModelConfig) -> int:
    """Return the weights of the projections of one layer."""
    width, heads = model.hidden_size, model.num_attention_heads
    match model.attention:
        case "softmax" | "linear":
            return 4 * width**2
        case "grouped":
            return 2 * width**2 + 2 * width * (width // heads * (model.num_key_value_heads or heads))
        case "latent":
            latent, rotated = model.latent_size or width, model.latent_rotary_size or width // heads // 2
            content = width - heads * rotated
            return 2 * width**2 + width * (latent + rotated) + latent * (content + width)
        case _:
            assert_never(model.attention)


# Dense rates without sparsity: (bf16, fp32 without TF32). NVIDIA's data sheets of A100, H100, H200 and L40S, and the
# white papers "GA102" and "Ada GPU architecture". Names are those of torch.cuda.get_device_name, whole: a 3090 Ti or a
# slice of a card (MIG) has other rates.
_DATASHEETS = {
    r"NVIDIA A100-.*GB|NVIDIA A100 80GB PCIe": (312e12, 19.5e12),
    r"NVIDIA H100 80GB HBM3|NVIDIA H200": (989.4e12, 66.9e12),
    r"NVIDIA H100 PCIe": (756e12, 51.2e12),
    r"NVIDIA H100 NVL|NVIDIA H200 NVL": (835.5e12, 60e12),
    r"NVIDIA L40S": (362e12, 91.6e12),
    r"NVIDIA GeForce RTX 3090": (71e12, 35.6e12),
    r"NVIDIA GeForce RTX 4090": (165.2e12, 82.6e12),
}


def datasheet_rate(device_name: str, dtype: torch.dtype) -> float | None:
    """Return the operations per second that the maker promises for matrix products; None if the table has none."""
    if dtype is torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return None
    for pattern, (bf16, fp32) in _DATASHEETS.items():
        if re.fullmatch(pattern, device_name):
            return {torch.bfloat16: bf16, torch.float32: fp32}.get(dtype)
    return None


def measured_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Measure the operations per second of this device in a large matrix product, in less than a second.

    Sizes double until one product takes long enough to be measured. Draws from no generator that others use.
    """
    size = _SMALLEST
    _seconds_of_product(size, dtype, device, reps_seconds=0.0)  # starts libraries and threads
    while _seconds_of_product(size, dtype, device, reps_seconds=0.0) < _LONG_ENOUGH_SECONDS and size < _LARGEST:
        size *= 2
    return 2 * size**3 / _seconds_of_product(size, dtype, device, reps_seconds=_MEASURE_SECONDS)


def _seconds_of_product(size: int, dtype: torch.dtype, device: torch.device, *, reps_seconds: float) -> float:
    """Return the best time of as many products as fit into ``reps_seconds``, at least one."""
    generator = torch.Generator(device).manual_seed(0)  # zeros would need less power, so clocks would be higher
    a, b = (torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in range(2))
    times: list[float] = []
    while not times or sum(times) < reps_seconds:
        synchronize(device)
        before = time.perf_counter()
        a @ b.T
        synchronize(device)
        times.append(time.perf_counter() - before)
    return min(times)


class PeakRates(NamedTuple):
    """Operations per second that all workers together could do in matrix products."""

    measured: float
    datasheet: float | None
    """None unless the table has the devices of all workers."""


def peak_rates(dtype: torch.dtype, device: torch.device) -> PeakRates:
    """Measure on all ranks at once, since workers on one machine share its cores or its power. A collective call."""
    dist.barrier()
    measured = measured_rate(dtype, device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    promised = datasheet_rate(torch.cuda.get_device_name(device), dtype) if device.type == "cuda" else None
    found = torch.tensor([measured, promised or 0.0, float(promised is None)], dtype=torch.float64, device=device)
    total, datasheet, unknown = sum_over_ranks(found).tolist()
    return PeakRates(total, None if unknown else datasheet)
