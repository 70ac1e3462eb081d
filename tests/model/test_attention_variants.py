"""Grouped, latent and linear attention: against the plain model, and against their formulas written out in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from kexue_train.foundation.errors import ConfigError
from kexue_train.model import RoFormerV2Config, RoFormerV2ForPreTraining
from kexue_train.model.config import ModelConfig
from kexue_train.model.modeling_roformer_v2 import Visibility, rotary_table
from kexue_train.model.recompute import compile_layers, enable_recompute
from kexue_train.model.variants_roformer_v2 import LatentAttention, LinearAttention
from tests.model.conftest import TINY

HEADS, SIZE, WIDTH = 4, 12, 48
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {"attention": "grouped", "num_key_value_heads": 2},
    "latent": {"attention": "latent", "latent_size": 20, "latent_rotary_size": 4},
    "linear": {"attention": "linear", "attention_probs_dropout_prob": 0.0},
}
each_variant = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())


def make(*, kernel: str = "sdpa", gain: float = 3.0, **options: Any) -> RoFormerV2ForPreTraining:
    """A tiny model with weights that are large enough for attention to be far from uniform."""
    torch.manual_seed(0)
    model = RoFormerV2ForPreTraining(RoFormerV2Config(**{**TINY, **options}, attn_implementation=kernel)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(gain)
    return model


def rotate(x: Tensor) -> Tensor:
    """Rotate [..., S, size] by the complex numbers exp(i · position · 10000^(-2k/size)), float64."""
    slots, size = x.shape[-2:]
    angles = torch.arange(slots)[:, None] * 10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).flatten(-2)


def inputs(slots: int = 9) -> Tensor:
    return torch.randn(1, slots, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def attend(module: torch.nn.Module, x: Tensor, **seen: Any) -> Tensor:
    """The output [S, E] of an attention module in float64."""
    rotary = rotary_table(torch.arange(x.shape[1])[None], SIZE, 10000.0).double()
    with torch.no_grad():
        return module.double().eval()(x, rotary, Visibility(**seen))[0]


def heads_of(weight: Tensor, x: Tensor) -> Tensor:
    """[1, S, in] -> [HEADS, S, ...] in float64."""
    return (x[0] @ weight.detach().double().T).unflatten(-1, (HEADS, -1)).transpose(0, 1)


def joined(heads: Tensor) -> Tensor:
    return heads.transpose(0, 1).flatten(1)


def config_of(name: str, **changes: Any) -> RoFormerV2Config:
    return RoFormerV2Config(**TINY, **{**VARIANTS[name], **changes})


def test_as_many_groups_as_heads_are_the_plain_model_to_the_bit(tokens):
    plain, grouped = make(), make(attention="grouped", num_key_value_heads=HEADS)
    grouped.load_state_dict(plain.state_dict())
    assert torch.equal(grouped(tokens(2, 30)).prediction_logits, plain(tokens(2, 30)).prediction_logits)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_group_is_the_plain_model_with_the_same_keys_and_values_in_several_heads(tokens, groups):
    plain, grouped = make(), make(attention="grouped", num_key_value_heads=groups)
    weights = grouped.state_dict()
    for name, weight in weights.items():
        if ".self.key." in name or ".self.value." in name:
            repeated = weight.unflatten(0, (groups, SIZE)).repeat_interleave(HEADS // groups, 0)
            weights[name] = repeated.flatten(0, 1)
    plain.load_state_dict(weights)
    torch.testing.assert_close(
        grouped(tokens(2, 30)).prediction_logits, plain(tokens(2, 30)).prediction_logits, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("rotated", [2, 4, 6])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_latent_attention_is_its_formula(rotated, scale):
    module, x = LatentAttention(config_of("latent", latent_rotary_size=rotated)), inputs()
    queries, latent = heads_of(module.query.weight, x), x @ module.latent.weight.detach().double().T
    k, v = heads_of(module.key.weight, latent), heads_of(module.value.weight, latent)
    k_rotated = rotate(x[0] @ module.rotary_key.weight.detach().double().T)
    q, q_rotated = queries[..., :-rotated], rotate(queries[..., -rotated:])
    scores = (q @ k.transpose(1, 2) + q_rotated @ k_rotated.T) / math.sqrt(SIZE)
    expected = joined((scores * (scale or 1.0)).softmax(-1) @ v)
    given = None if scale is None else torch.full((1, 9, 1, 1, 1), scale, dtype=torch.float64)
    torch.testing.assert_close(attend(module, x, query_scale=given), expected, rtol=1e-6, atol=1e-7)


def test_a_latent_of_full_rank_is_plain_attention_with_positions_in_part_of_a_head():
    # W_c = 1, so W_k and W_v are those of the plain attention; its rotated part has one key for all heads, and its
    # other pairs have the angle 0.
    rotated, x = 4, inputs()
    latent = LatentAttention(config_of("latent", latent_size=WIDTH))
    plain = make(num_hidden_layers=1).roformer.encoder.layer[0].attention.self
    with torch.no_grad():
        latent.latent.weight.copy_(torch.eye(WIDTH))
        keys = torch.cat(
            (latent.key.weight.unflatten(0, (HEADS, -1)), latent.rotary_key.weight.expand(HEADS, -1, -1)), 1
        )
        plain.key.weight.copy_(keys.flatten(0, 1))
        plain.query.weight.copy_(latent.query.weight)
        plain.value.weight.copy_(latent.value.weight)
    table = rotary_table(torch.arange(9)[None], SIZE, 10000.0).double()
    still = torch.tensor([1.0, 0.0]).expand(1, 9, 1, (SIZE - rotated) // 2, 2).double()
    partly = torch.cat((still, table[..., :: SIZE // rotated, :]), -2)
    with torch.no_grad():
        expected = plain.double()(x, partly, Visibility())[0]
    torch.testing.assert_close(attend(latent, x), expected, rtol=1e-12, atol=1e-12)


def linear_oracle(module: LinearAttention, x: Tensor, mask: Tensor | None = None) -> Tensor:
    q, k, v = (heads_of(linear.weight, x) for linear in (module.query, module.key, module.value))
    q, k = (torch.where(part > 0, part + 1, part.exp()) for part in (q, k))  # elu + 1
    visible = torch.ones(x.shape[1], x.shape[1]).double() if mask is None else mask.double()
    weights = visible * (rotate(q) @ rotate(k).transpose(1, 2))
    return joined(weights @ v / (visible * (q @ k.transpose(1, 2))).sum(-1, keepdim=True))


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_linear_attention_is_the_quadratic_formula(kernel):
    module, x = LinearAttention(config_of("linear", attn_implementation=kernel)), inputs()
    torch.testing.assert_close(attend(module, x), linear_oracle(module, x), rtol=1e-6, atol=1e-7)
    real = torch.arange(9) < 6
    padded = attend(module, x, mask=real[None, None, None])
    torch.testing.assert_close(padded, linear_oracle(module, x, real.expand(9, 9)), rtol=1e-6, atol=1e-7)
    causal = torch.ones(9, 9).tril().bool()
    masked = attend(module, x, mask=causal[None, None])
    torch.testing.assert_close(masked, linear_oracle(module, x, causal), rtol=1e-6, atol=1e-7)


def test_where_sequences_begin_says_the_same_as_their_lengths():
    module, x = LinearAttention(config_of("linear")), inputs()
    starts = torch.tensor([0, 4, 9, 9], dtype=torch.int32)
    assert torch.equal(attend(module, x, starts=starts), attend(module, x, lengths=[4, 5]))


def test_weights_of_equal_tokens_at_one_place_sum_to_one():
    # Without rotation a row of weights sums to 1, so the mean of equal values is that value.
    module = LinearAttention(config_of("linear")).double()
    x = inputs(1).expand(1, 9, WIDTH)
    still = torch.tensor([1.0, 0.0]).expand(1, 9, 1, SIZE // 2, 2).double()
    with torch.no_grad():
        torch.testing.assert_close(module(x, still, Visibility())[0], module.value(x)[0])


def test_the_work_of_linear_attention_grows_with_the_length():
    def work(slots: int) -> int:
        model = make(**VARIANTS["linear"], num_hidden_layers=1)
        with torch.no_grad(), FlopCounterMode(display=False) as counted:
            model.roformer(torch.ones(1, slots, dtype=torch.long))
        return counted.get_total_flops()

    assert work(512) == 2 * work(256)


@each_variant
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_packed_sequences_are_as_if_alone(tokens, options, kernel):
    model, input_ids, lengths = make(kernel=kernel, **options), tokens(1, 40), [6, 20, 3, 11]
    sequence_ids = torch.repeat_interleave(torch.arange(1, 5), torch.tensor(lengths))[None]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = model.roformer(input_ids, sequence_ids=sequence_ids, position_ids=positions).last_hidden_state[0]
    alone = [model.roformer(ids[None]).last_hidden_state[0] for ids in input_ids[0].split(lengths)]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=0, atol=2e-5)


@each_variant
def test_padding_has_no_influence(tokens, options):
    model, input_ids = make(**options), tokens(2, 12)
    mask = (torch.arange(12) < 7).long().expand(2, 12)
    padded = model.roformer(input_ids, attention_mask=mask).last_hidden_state[:, :7]
    torch.testing.assert_close(padded, model.roformer(input_ids[:, :7]).last_hidden_state, rtol=0, atol=2e-5)


@each_variant
def test_only_distances_count_and_they_do_count(tokens, options):
    model, input_ids = make(**options), tokens(1, 12)
    positions = torch.arange(12)[None]
    here, there, mixed = (
        model.roformer(input_ids, position_ids=p).last_hidden_state for p in (positions, positions + 30, positions * 5)
    )
    torch.testing.assert_close(here, there, rtol=0, atol=1e-4)
    assert (here - mixed).abs().max() > 0.01


@each_variant
def test_every_weight_is_trained(tokens, options):
    model = make(**options).train()
    model(tokens(2, 12), labels=tokens(2, 12), next_sentence_label=torch.tensor([0, 1])).loss.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


@pytest.mark.parametrize("name", ["grouped", "latent"])
@pytest.mark.parametrize("long", [{"log_n_scale": 64}, {"attention_window": 8}, {"prefix_lm": True}])
def test_kernels_and_options_of_the_plain_attention_stay(tokens, name, long):
    fused, eager = (make(kernel=kernel, **VARIANTS[name], **long) for kernel in ("sdpa", "eager"))
    segments = (torch.arange(30) > 12).long().expand(2, 30)
    first, second, without = (
        model.roformer(tokens(2, 30), token_type_ids=segments).last_hidden_state
        for model in (fused, eager, make(**VARIANTS[name]))
    )
    torch.testing.assert_close(first, second, rtol=0, atol=2e-5)
    assert (first - without).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["grouped", "latent"])
def test_probabilities_are_returned(tokens, name):
    found = make(kernel="eager", **VARIANTS[name])(tokens(2, 9), output_attentions=True).attentions
    assert [list(layer.shape) for layer in found] == [[2, HEADS, 9, 9]] * 3
    torch.testing.assert_close(found[0].sum(-1), torch.ones(2, HEADS, 9))


@each_variant
def test_full_recomputation_changes_no_bit(tokens, options):
    def gradients(recompute: bool) -> list[Tensor]:
        model = make(**options).train()
        if recompute:
            enable_recompute(model.roformer, "full")
        torch.manual_seed(3)
        model(tokens(2, 12), labels=tokens(2, 12)).loss.backward()
        return [parameter.grad for parameter in model.roformer.parameters()]

    assert all(map(torch.equal, gradients(False), gradients(True)))


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"attention": "sparse"}, r"attention='sparse': allowed are softmax, grouped, latent, linear"),
    ({"num_key_value_heads": 2}, r"num_key_value_heads=2 has no effect with attention='softmax'"),
    ({"attention": "grouped"}, r"num_key_value_heads=None: grouped attention needs a divisor of num_attention_heads=4"),
    ({"attention": "grouped", "num_key_value_heads": 3}, r"num_key_value_heads=3: .* a divisor"),
    ({"attention": "latent"}, r"latent_size=None: latent attention needs"),
    ({"attention": "latent", "latent_size": 8, "latent_rotary_size": 12}, r"latent_rotary_size=12: .* less than that"),
    ({"attention": "latent", "latent_size": 8, "latent_rotary_size": 3}, r"latent_rotary_size=3: give an even divisor"),
    ({**VARIANTS["linear"], "log_n_scale": 512}, r"log_n_scale=512 has no effect with attention='linear'"),
    ({"attention": "linear"}, r"attention_probs_dropout_prob=0\.1 has no effect with attention='linear'"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_combinations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RoFormerV2Config(**TINY, **options)
    section = {name: value for name, value in {**TINY, **options}.items() if name != "vocab_size"}
    with pytest.raises(ConfigError, match=next(name for name in options if name in message)):
        ModelConfig.parse(section, where="run.yaml")


def test_a_kernel_or_a_wish_that_linear_attention_would_ignore_is_refused(tokens):
    with pytest.raises(ValueError, match="attention='linear' has no probabilities to return"):
        make(kernel="eager", **VARIANTS["linear"])(tokens(1, 5), output_attentions=True)
    model = make(**VARIANTS["linear"])
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="no kernel of flash_attn"):
        model(tokens(1, 5))


def test_recomputation_and_compilation_that_would_go_wrong_are_refused():
    with pytest.raises(ValueError, match=r"attention=latent with recompute=selective.*take recompute=full or none"):
        enable_recompute(make(**VARIANTS["latent"]).roformer, "selective")
    with pytest.raises(ValueError, match=r"attention=linear with compile=true.*take compile=false"):
        compile_layers(make(**VARIANTS["linear"]).roformer)


@pytest.mark.parametrize("options", [{"log_n_scale": 64}, VARIANTS["latent"], VARIANTS["linear"]])
def test_an_exported_program_takes_other_shapes(tokens, options):
    model, mask = make(**options), (torch.arange(24) < 20).long().expand(2, 24)
    rows, slots = torch.export.Dim("rows", min=1, max=64), torch.export.Dim("slots", min=2, max=512)
    free = {name: {0: rows, 1: slots} for name in ("input_ids", "attention_mask")}
    program = torch.export.export(model, (tokens(2, 24), mask), dynamic_shapes=free, strict=False).module()
    given = tokens(1, 10), mask[:1, :10]
    torch.testing.assert_close(program(*given)["prediction_logits"], model(*given).prediction_logits)


@pytest.mark.parametrize("options", [{"log_n_scale": 64}, {**VARIANTS["latent"], "attention_window": 4}])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at every tensor's
def test_layers_compile_as_wholes(tokens, options):
    torch._dynamo.reset()
    model, sequence_ids = make(**options), (torch.arange(24) // 8 + 1).expand(2, 24)
    expected = model.roformer(tokens(2, 24), sequence_ids=sequence_ids).last_hidden_state
    compile_layers(model.roformer, backend="eager")
    found = model.roformer(tokens(2, 24), sequence_ids=sequence_ids).last_hidden_state
    torch._dynamo.reset()
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
