"""Operations of a step: the rule against an operator-by-operator count, and rates of devices."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kexue_train.model import RoFormerV2ForPreTraining
from kexue_train.model.config import ModelConfig
from kexue_train.model.hf_folder import build_hf_config
from kexue_train.train.monitor.flops import datasheet_rate, flop_rule, measured_rate
from tests.train.tiny_training import make_objective

VOCAB, ROWS, LENGTH, PREDICTIONS, PAIRS = 128, 3, 16, 8, 3
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def _batch() -> dict[str, torch.Tensor]:
    """Rows of one sequence each, every slot used and every slot of the heads labelled."""
    shape = ROWS, LENGTH
    return {
        "input_ids": torch.arange(ROWS * LENGTH).view(shape) % VOCAB,
        "sequence_ids": torch.ones(shape, dtype=torch.long),
        "sequence_starts": torch.arange(0, (ROWS + 1) * LENGTH, LENGTH, dtype=torch.int32),
        "position_ids": torch.arange(LENGTH).repeat(ROWS, 1),
        "token_type_ids": torch.zeros(shape, dtype=torch.long),
        "prediction_slots": torch.arange(PREDICTIONS),
        "prediction_labels": torch.arange(PREDICTIONS),
        "pair_slots": torch.arange(PAIRS) * LENGTH,
        "pair_labels": torch.tensor([0, 1, 0]),
    }


@pytest.mark.parametrize("act", ["relu", "tanh", ("gelu", "linear")], ids=["relu", "tanh", "gated"])
def test_the_rule_counts_what_the_operators_of_a_step_do(act):
    sizes = {"num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 40}
    config = ModelConfig(**sizes, hidden_act=act, **STILL)
    model = RoFormerV2ForPreTraining(build_hf_config(config, VOCAB))
    model.config._attn_implementation = "eager"  # the fused kernels compute the scores again in backward
    objective = make_objective(model, expected=(PREDICTIONS, PAIRS))
    with FlopCounterMode(display=False) as counter:
        objective(_batch())[0].backward()
    tokens = ROWS * LENGTH
    ruled = flop_rule(config, VOCAB).flops(tokens, tokens * LENGTH, PREDICTIONS)
    # The rule has BERT's h · h transform of predictions, which this model lacks; and leaves out the NSP head, which has
    # an h · h and an h · 2 product per pair.
    assert counter.get_total_flops() == ruled - 6 * 24**2 * PREDICTIONS + 6 * (24**2 + 2 * 24) * PAIRS


@pytest.mark.parametrize(
    "options",
    [
        {"attention": "grouped", "num_key_value_heads": 1},
        {"attention": "latent", "latent_size": 10, "latent_rotary_size": 4},
        {"attention": "linear"},
        {"log_n_scale": 64},
    ],
)
def test_the_rule_counts_the_operators_of_every_attention(options):
    sizes = {"num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 40}
    config = ModelConfig(**sizes, **options, **STILL)
    model = RoFormerV2ForPreTraining(build_hf_config(config, VOCAB))
    model.config._attn_implementation = "sdpa" if "linear" in options.values() else "eager"
    objective = make_objective(model, expected=(PREDICTIONS, PAIRS))
    with FlopCounterMode(display=False) as counter:
        objective(_batch())[0].backward()
    ruled = flop_rule(config, VOCAB).flops(ROWS * LENGTH, ROWS * LENGTH * LENGTH, PREDICTIONS)
    assert counter.get_total_flops() == ruled - 6 * 24**2 * PREDICTIONS + 6 * (24**2 + 2 * 24) * PAIRS


def test_published_figures_of_base_and_large_come_out():
    base = flop_rule(ModelConfig(), 50_000).per_token_of(mean_length=512, predicted_share=0.15)
    large = ModelConfig(num_hidden_layers=24, hidden_size=1024, num_attention_heads=16, intermediate_size=4096)
    assert base == pytest.approx(0.601e9, rel=1e-3)
    assert flop_rule(large, 50_000).per_token_of(mean_length=512, predicted_share=0.15) == pytest.approx(
        2.010e9, rel=1e-3
    )


@pytest.mark.parametrize(
    ("name", "bf16"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12), ("NVIDIA H200", 989.4e12), ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA A100 80GB PCIe", 312e12), ("NVIDIA A100-PCIE-40GB", 312e12),
        ("NVIDIA GeForce RTX 3090 Ti", None), ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None), ("Tesla T4", None),
    ],
)  # fmt: skip
def test_the_data_sheet_is_that_of_the_very_device(name, bf16):
    assert datasheet_rate(name, torch.bfloat16) == bf16


def test_the_data_sheet_tells_fp32_and_bf16_apart_and_nothing_else():
    assert datasheet_rate("NVIDIA H200", torch.float32) == 66.9e12
    assert datasheet_rate("NVIDIA H200", torch.float16) is None


def test_a_device_is_measured_without_touching_the_generator_of_others():
    state = torch.get_rng_state()
    assert 1e8 < measured_rate(torch.float32, torch.device("cpu")) < 1e15
    assert torch.equal(torch.get_rng_state(), state)
