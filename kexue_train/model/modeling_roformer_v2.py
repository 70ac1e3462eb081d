"""RoFormerV2 for PyTorch and Hugging Face, self-contained: copied into every exported folder.

Legend: B rows, S token slots of a row, H heads, D size of a head, E = H·D hidden size, V vocabulary.

    x = RMSNorm(Dropout(word[input_ids] + segment[token_type_ids]))
    per layer:  x = RMSNorm(x + Dropout(Attention(x)));  x = RMSNorm(x + Dropout(W_f relu(W_i x)))
    MLM logits: Dropout(x) · wordᵀ (tied, no transform, no bias);  NSP logits: W_c tanh(W_d x[CLS]) (no bias)

No bias anywhere, no gain in the norms, rotary positions on q and k in interleaved pairs (2i, 2i+1), never on v.
Source: https://kexue.fm/archives/8998 and bert4keras ``RoFormerV2``; parameter names as in JunnYu/RoFormer_pytorch.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    NextSentencePredictorOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils import ModelOutput, logging

from .configuration_roformer_v2 import RoFormerV2Config

logger = logging.get_logger(__name__)

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "linear": nn.Identity(),
}

# Devices on which one wide product, whose input is cast once, is faster than three; on a CPU it is not, and adds in
# another order.
_ONE_PRODUCT = {"cuda"}

# A normal cut at ±2σ has 0.7737 of the variance; this factor gives it back. Source: kexue.fm/archives/8620.
_TRUNCATION = 1.13684723


def rotary_table(position_ids: Tensor, head_size: int, base: float) -> Tensor:
    """(cos, sin) of the rotations, fp32 [B, S, 1, D/2, 2]; angle i is position · base^(-2i/D)."""
    # An fp32 angle is off by 2e-5 at position 500, more than everything else in the forward pass; MPS has no fp64.
    wide = torch.float32 if position_ids.device.type == "mps" else torch.float64
    exponent = torch.arange(0, head_size, 2, dtype=wide, device=position_ids.device) / head_size
    angles = position_ids[:, :, None, None].to(wide) * base**-exponent
    return torch.stack((angles.cos(), angles.sin()), -1).float()


def apply_rope(x_BSHD: Tensor, rotary: Tensor) -> Tensor:  # noqa: N803  # shape suffix
    """Rotate each pair (2i, 2i+1) of the last dimension in fp32 or wider; same shape and dtype."""
    pairs = _widen(x_BSHD).reshape(*x_BSHD.shape[:-1], -1, 2)
    if _is_traced() or x_BSHD.device.type == "mps":
        (even, odd), (cos, sin) = pairs.unbind(-1), rotary.unbind(-1)
        turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1)
    else:  # one kernel that reads pairs in place, on a CPU ten times as fast; compilers have no complex numbers
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotary))
    return turned.flatten(-2).to(x_BSHD.dtype)


def _widen(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _is_traced() -> bool:
    """Whether a compiler or an exporter records the operations, so that nothing may depend on values."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None  # the latter: ONNX, torch.jit


class LongInput(NamedTuple):
    """What attention does with inputs longer than those of training. Source: kexue.fm/archives/9431 and 8823."""

    sequence_ids: Tensor
    """[B, S]; tokens with equal numbers see each other."""
    window: int | None
    """In sequences of more tokens, a token sees only those at most window // 2 away."""
    log_n_scale: int | None
    """Scores of a query that sees n keys are multiplied by ``log_n_factor`` of n."""


def log_n_factor(counts: Tensor, log_n_scale: int) -> Tensor:
    """log(max(n, 16)) / log(log_n_scale), fp32, same shape. Source: https://kexue.fm/archives/8823."""
    return counts.clamp(min=16).log() / math.log(log_n_scale)


def sequence_sizes(ids: Tensor) -> Tensor:
    """How many tokens of its row have a token's number, itself included; [B, S] of numbers from 0 to S."""
    rows, slots = ids.shape  # len(ids) would be a number of an exported program
    return ids.new_zeros(rows, slots + 1).scatter_add_(1, ids, torch.ones_like(ids)).gather(1, ids)


class Visibility(NamedTuple):
    """Which tokens see which, worked out once per forward for all layers; with no field set, all see all.

    ``lengths`` and ``starts`` cut rows into sequences that see only themselves, without any [S, S] mask.
    """

    mask: Tensor | None = None
    """Boolean, True where a query may see a key: [B, 1, S, S] for packed rows or a prefix, [B, 1, 1, S] for padding."""
    lengths: list[int] | None = None
    """Of all sequences (runs of padding too) through all rows; they sum to B·S."""
    starts: Tensor | None = None
    """First slots of the same sequences, then B·S: int32 [n + 1], on the device of the model."""
    long: LongInput | None = None
    """The options for inputs longer than the training's, in place of the above."""
    probabilities: list[Tensor] | None = None
    """Where eager attention puts its probabilities [B, H, S, S], layer by layer."""
    query_scale: Tensor | None = None
    """Factor of the queries, fp32 [B, S, 1, 1, 1], beside any field but ``long``."""


def rotary_of_queries(rotary: Tensor, seen: Visibility) -> Tensor:
    """The table that rotates queries, and scales them where ``seen`` asks for that: one rounding for both."""
    return rotary if seen.query_scale is None else rotary * seen.query_scale


def attention_mask_of(sequence_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor | None:
    """Boolean mask, True where a query may see a key: [B, 1, S, S] for packed rows, [B, 1, 1, S] for padded ones.

    Args:
        sequence_ids: [B, S]; tokens with equal numbers see each other and nobody else (0 marks padding).
        attention_mask: [B, S]; 1 for tokens, 0 for padding.
    """
    if sequence_ids is not None:
        return (sequence_ids[:, None, :, None] == sequence_ids[:, None, None, :]).contiguous()
    if attention_mask is None or (not _is_traced() and bool(attention_mask.all())):
        return None
    mask = attention_mask[:, None, None, :].bool()
    return mask | ~mask.any(-1, keepdim=True)  # a row of padding sees itself, or it would not be a number


def prefix_mask_of(
    token_type_ids: Tensor, sequence_ids: Tensor | None = None, attention_mask: Tensor | None = None
) -> Tensor:
    """Boolean mask [B, 1, S, S] of ``prefix_lm``, True where a query may see a key.

    The first segment sees all of itself and nothing else; a token of the second sees the first, and the second up to
    itself, in the order of the slots. So the first segment's states are those of the first segment alone.

    Args:
        token_type_ids: [B, S], 0 for the first segment, more for the second.
        sequence_ids: [B, S] as for ``attention_mask_of``, like the next.
        attention_mask: [B, S].

    Source: kexue.fm/archives/7427, after UniLM.
    """
    slots, is_first = torch.arange(token_type_ids.shape[1], device=token_type_ids.device), token_type_ids == 0
    mask = is_first[:, None, :] | (~is_first[:, :, None] & (slots <= slots[:, None]))
    if sequence_ids is not None:
        mask &= sequence_ids[:, :, None] == sequence_ids[:, None, :]
    elif attention_mask is not None:
        mask &= attention_mask[:, None, :].bool()
    return (mask | (slots == slots[:, None]))[:, None]  # padding sees itself, or it would not be a number


def sequence_starts(sequence_ids: Tensor) -> Tensor | None:
    """First slots, counted through all rows, of the runs of equal numbers in [B, S], then B·S; int64 [n + 1].

    None if a number comes back after another one: such sequences are no runs, and only a mask can describe them.
    """
    rows, slots = sequence_ids.shape
    begins = torch.ones_like(sequence_ids, dtype=torch.bool)
    begins[:, 1:] = sequence_ids[:, 1:] != sequence_ids[:, :-1]
    ordered = sequence_ids.sort(1).values
    num_sequences = (ordered[:, 1:] != ordered[:, :-1]).sum() + rows
    starts = begins.flatten().nonzero().flatten()
    return F.pad(starts, (0, 1), value=rows * slots) if len(starts) == num_sequences else None


def _in_few_sizes(starts: Tensor) -> Tensor:
    """With empty sequences at the end up to a multiple of 256, so that compiled layers see few shapes."""
    return torch.cat((starts, starts[-1].expand(-len(starts) % 256)))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) over the last dimension, without gain; the statistics are fp32."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype."""
        return F.rms_norm(_widen(x), x.shape[-1:], eps=self.eps).to(x.dtype)


class RoFormerV2Embeddings(nn.Module):
    """Word plus segment embedding, dropout, norm (in that order: dropout comes before the norm in V2 only)."""

    def __init__(self, config: RoFormerV2Config) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.norm = RMSNorm(config.layer_norm_eps)

    def forward(self, input_ids: Tensor | None, token_type_ids: Tensor, inputs_embeds: Tensor | None = None) -> Tensor:
        """[B, S] or embeddings [B, S, E] -> [B, S, E]."""
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        return self.norm(self.dropout(words + self.token_type_embeddings(token_type_ids)))


class RoFormerV2SelfAttention(nn.Module):
    """Scaled dot-product attention over H heads with rotated queries and keys."""

    def __init__(self, config: RoFormerV2Config) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.key = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.value = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, rotary: Tensor, seen: Visibility) -> Tensor:
        """[B, S, E] -> [B, S, E]."""
        split = (*x.shape[:2], self.num_heads, -1)
        q, k, v = (projected.view(split) for projected in self._project(x))
        q, k = apply_rope(q, rotary_of_queries(rotary, seen)), apply_rope(k, rotary)
        kernel = attention_kernel(self.config._attn_implementation, seen)
        return kernel(q, k, v, seen, self.dropout if self.training else 0.0).flatten(2)

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, in one product where that is faster and nothing is around the three layers."""
        linears = (self.query, self.key, self.value)
        if x.device.type not in _ONE_PRODUCT or not all(map(_is_plain, linears)):
            return tuple(linear(x) for linear in linears)
        return F.linear(x, torch.cat([linear.weight for linear in linears])).chunk(3, -1)


def _is_plain(linear: nn.Module) -> bool:
    """Whether it does nothing but multiply: no adapter, no bias, and no hook, by which partitioned weights come."""
    hooks = linear._forward_hooks or linear._forward_pre_hooks
    return type(linear) is nn.Linear and linear._parameters["bias"] is None and not hooks


ATTENTION_IMPLEMENTATIONS = ("sdpa", "eager", "flash_attention_2")


def check_attention(implementation: str, *, prefix_lm: bool = False) -> str:
    """Return ``implementation``; refuse one that no kernel of this file is chosen for, registered ones too.

    With ``prefix_lm`` the kernel has to take a mask.

    Raises:
        ValueError: If it would be ignored.
    """
    registered = AttentionInterface().get(implementation)
    is_replaced = registered is not None and not registered.__module__.startswith("transformers.")
    if implementation not in ATTENTION_IMPLEMENTATIONS or is_replaced:
        own = "a kernel that was registered under this name" if is_replaced else "it"
        raise ValueError(
            f"attn_implementation={implementation!r}: RoFormerV2 has kernels of its own and would not call {own}; use "
            f"{', '.join(ATTENTION_IMPLEMENTATIONS)} as transformers defines them"
        )
    if prefix_lm and implementation == "flash_attention_2":
        raise ValueError(
            "attn_implementation='flash_attention_2' takes no mask, which prefix_lm=True needs; use 'sdpa' or 'eager'"
        )
    return implementation


_Kernel = Callable[[Tensor, Tensor, Tensor, Visibility, float], Tensor]  # q, k, v and the result are [B, S, H, D]


def attention_kernel(implementation: str | None, seen: Visibility) -> _Kernel:
    """The fastest way to attend that ``seen`` was made for; all give the same numbers up to rounding."""
    if seen.long is not None:
        return partial(long_attention, attend=eager_attention if implementation == "eager" else masked_attention)
    if seen.starts is not None:
        return flash_attn_attention if implementation == "flash_attention_2" else varlen_attention
    if seen.lengths is not None:
        return sequence_attention
    return eager_attention if implementation == "eager" else masked_attention


def eager_attention(q: Tensor, k: Tensor, v: Tensor, seen: Visibility, dropout: float) -> Tensor:
    """Attention with the [S, S] probabilities written out; the reference for the others."""
    q, k, v_BHSD = (x.transpose(1, 2) for x in (q, k, v))  # noqa: N806  # shape suffix
    scores = (_widen(q) @ _widen(k).transpose(-1, -2)) * q.shape[-1] ** -0.5
    if seen.mask is not None:
        scores = scores.masked_fill(~seen.mask, float("-inf"))
    probabilities = scores.softmax(-1)
    if seen.probabilities is not None:
        seen.probabilities.append(probabilities)
    return (F.dropout(probabilities, dropout).to(v.dtype) @ v_BHSD).transpose(1, 2)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, seen: Visibility, dropout: float) -> Tensor:
    """One fused call for all rows, with a mask if there is one."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen.mask, dropout_p=dropout).transpose(1, 2)


def long_attention(q: Tensor, k: Tensor, v: Tensor, seen: Visibility, dropout: float, *, attend: _Kernel) -> Tensor:
    """Blocks of queries against the keys around them, so that time and memory grow with S · window."""
    assert seen.long is not None  # that is what this kernel is chosen for
    (ids, window, log_n_scale), slots = seen.long, q.shape[1]
    sizes = sequence_sizes(ids)
    place, block, attended = torch.arange(slots, device=q.device), window or slots, []
    for start in range(0, slots, block):
        mine, around = slice(start, start + block), slice(max(0, start - block), start + 2 * block)
        mask = ids[:, mine, None] == ids[:, None, around]
        if window:
            is_near = (place[mine, None] - place[around]).abs() <= window // 2
            mask &= is_near | (sizes[:, mine, None] <= window)
        queries = q[:, mine]
        if log_n_scale:
            scale = log_n_factor(mask.sum(-1), log_n_scale)
            queries = queries * scale[:, :, None, None].to(q.dtype)
        attended.append(attend(queries, k[:, around], v[:, around], Visibility(mask=mask[:, None]), dropout))
    return torch.cat(attended, 1)


def sequence_attention(q: Tensor, k: Tensor, v: Tensor, seen: Visibility, dropout: float) -> Tensor:
    """One fused call per sequence, for CPUs, where calls cost little and a mask saves no work.

    Always fp32: without bf16 units the bf16 kernel's backward takes ten times as long.
    """
    assert seen.lengths is not None  # that is what this kernel is chosen for
    with torch.autocast("cpu", enabled=False):
        sequences = zip(*(torch.split(_widen(x).flatten(0, 1), seen.lengths) for x in (q, k, v)), strict=True)
        attended = [_attend_to_all(*qkv, dropout=dropout) for qkv in sequences]
        return torch.cat(attended).view(q.shape).to(v.dtype)


def _attend_to_all(q: Tensor, k: Tensor, v: Tensor, *, dropout: float) -> Tensor:
    """One sequence, [length, H, D] each."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)[0].transpose(0, 1)


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, seen: Visibility, dropout: float) -> Tensor:
    """All sequences in one call of torch's own flash kernel (CUDA, half precision)."""
    # The operator under torch.nn.attention.varlen, which fixes dropout at 0. The row length as the longest sequence
    # keeps shapes static; blocks beyond a sequence's end return at once.
    packed, longest = [x.flatten(0, 1) for x in (q, k, v)], q.shape[1]
    flash = torch.ops.aten._flash_attention_forward
    return flash(*packed, seen.starts, seen.starts, longest, longest, dropout, False, False)[0].view(q.shape)


def flash_attn_attention(q: Tensor, k: Tensor, v: Tensor, seen: Visibility, dropout: float) -> Tensor:
    """The same with the package flash_attn."""
    packed, longest = [x.flatten(0, 1) for x in (q, k, v)], q.shape[1]
    flash = importlib.import_module("flash_attn").flash_attn_varlen_func  # a plain import would bind every export to it
    return flash(*packed, seen.starts, seen.starts, longest, longest, dropout_p=dropout).view(q.shape)


SELF_ATTENTION: dict[str, type[nn.Module]] = {"softmax": RoFormerV2SelfAttention}
"""By ``config.attention``; the file of the variants adds the others when it is imported."""
_VARIANTS = "variants_roformer_v2"


def _self_attention(config: RoFormerV2Config) -> nn.Module:
    if config.attention not in SELF_ATTENTION and not Path(__file__).with_name(f"{_VARIANTS}.py").is_file():
        raise ValueError(f"attention={config.attention!r} needs {_VARIANTS}.py, which plain models do not carry")
    if config.attention not in SELF_ATTENTION:
        importlib.import_module(f".{_VARIANTS}", __package__)  # a plain import would give the file to every export
    return SELF_ATTENTION[config.attention](config)


class _Attention(nn.Module):
    """Groups the projections under the released parameter names ``attention.self.*`` and ``attention.output.dense``."""

    def __init__(self, config: RoFormerV2Config) -> None:
        super().__init__()
        self.self = _self_attention(config)
        self.output = _Projection(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, rotary: Tensor, seen: Visibility) -> Tensor:
        return self.output(self.self(x, rotary, seen))


class _Projection(nn.Module):
    """One bias-free linear layer called ``dense``."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x)


class _Intermediate(nn.Module):
    """relu(x W), or act₁(x W₁) · act₂(x W₂) of a gated layer, as bert4keras does it; without biases."""

    def __init__(self, config: RoFormerV2Config) -> None:
        super().__init__()
        first, *second = [config.hidden_act] if isinstance(config.hidden_act, str) else config.hidden_act
        self.activation = _ACTIVATIONS[first]
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.is_gated = bool(second)
        if self.is_gated:
            self.activation_2 = _ACTIVATIONS[second[0]]
            self.dense_2 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.activation(self.dense(x))
        return inner * self.activation_2(self.dense_2(x)) if self.is_gated else inner


class RoFormerV2Layer(GradientCheckpointingLayer):
    """Attention and feed-forward F, each with dropout, residual and norm: Norm(x + F(x)), or x + F(Norm(x))."""

    residual_scale: Tensor | None

    def __init__(self, config: RoFormerV2Config) -> None:
        super().__init__()
        self.is_pre_norm = config.norm_placement == "pre"
        self.register_buffer("residual_scale", None, persistent=False)
        self.attention = _Attention(config)
        self.intermediate = _Intermediate(config)
        self.output = _Projection(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.norm = RMSNorm(config.layer_norm_eps)

    def forward(self, x: Tensor, rotary: Tensor, seen: Visibility) -> Tensor:
        """[B, S, E] -> [B, S, E]."""
        if self.is_pre_norm:
            x = x + self._branch(self.attention(self.norm(x), rotary, seen))
            return x + self._branch(self.output(self.intermediate(self.norm(x))))
        x = self.norm(x + self._branch(self.attention(x, rotary, seen)))
        return self.norm(x + self._branch(self.output(self.intermediate(x))))

    def _branch(self, y: Tensor) -> Tensor:
        y = self.dropout(y)
        return y if self.residual_scale is None else y * self.residual_scale


def set_residual_scale(model: nn.Module, alpha: float) -> None:
    """Let every layer of ``model`` compute Norm(x + alpha F(x)) from now on; 1 is the plain model, bit for bit.

    A device of training, no part of the model: it is neither saved nor loaded. At 0 the branches get no gradient.

    Args:
        model: Any model of this file, or a module around one.
        alpha: From 0 to 1.

    Raises:
        ValueError: If alpha is out of range.

    Source: https://kexue.fm/archives/8998 and https://kexue.fm/archives/8620.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha!r}: the residual scale goes from 0 to 1")
    for layer in model.modules():
        if isinstance(layer, RoFormerV2Layer):
            if alpha == 1:
                layer.residual_scale = None
            elif layer.residual_scale is None:
                layer.residual_scale = torch.tensor(alpha, device=layer.output.dense.weight.device)
            else:  # the same tensor, so that compiled code stays valid
                layer.residual_scale.fill_(alpha)


def _code_in(folder: Path, *, with_variants: bool = True) -> list[bytes]:
    names = [Path(__file__).name, *([f"{_VARIANTS}.py"] if with_variants else [])]
    return [(folder / name).read_bytes() for name in names if (folder / name).is_file()]


class _Encoder(nn.Module):
    """Holds the layers under the released name ``encoder.layer``."""

    def __init__(self, config: RoFormerV2Config) -> None:
        super().__init__()
        self.layer = nn.ModuleList(RoFormerV2Layer(config) for _ in range(config.num_hidden_layers))


class RoFormerV2PreTrainedModel(PreTrainedModel):
    """Initialisation by role and the Hugging Face conventions.

    Fresh weights are normal, cut at ±2σ, with a true variance of 1 / (depth · fan). ``config.init`` chooses, for N
    layers and a kernel that reads m numbers and writes n (a table's fan is always its width):

    * ``depth_n``: depth N, fan m; ``depth_2n``: depth 2N; ``released``: depth 1, as the published weights started,
      which needs ``set_residual_scale`` at first;
    * ``arithmetic``: depth N, fan (m + n) / 2; ``geometric``: √(m n); ``quadratic``: (m² + n²) / (m + n).

    Source: https://kexue.fm/archives/8620, 8978 and 8725.
    """

    config_class = RoFormerV2Config
    base_model_prefix = "roformer"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    accepts_loss_kwargs = False  # the losses are means over a batch
    _no_split_modules = ["RoFormerV2Layer"]  # noqa: RUF012  # the form transformers expects
    # Heads of the other models of this file; and the table of sines and cosines of the released files, computed here.
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012  # the form transformers expects
        r"^cls\.",
        r"^classifier\.",
        r"^qa_outputs\.",
        r"encoder\.embed_positions\.weight",
    ]

    def __init__(self, config: RoFormerV2Config) -> None:
        if getattr(config, "model_type", None) != RoFormerV2Config.model_type:
            raise TypeError(f"{type(self).__name__} needs a RoFormerV2Config, not {type(config).__name__}")
        config.check_options()
        super().__init__(config)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; a folder that carries other modelling code is opened with its own.

        Raises:
            ValueError: If that code may not be run: without ``trust_remote_code=True``.
        """
        # An auto class runs the code of the first of all folders that share the code of the configuration.
        if not cls._is_code_of(pretrained_model_name_or_path):
            if not kwargs.get("trust_remote_code"):
                raise ValueError(
                    f"{pretrained_model_name_or_path}: carries other modelling code than {cls.__name__} of {__file__}; "
                    "to run it, pass trust_remote_code=True"
                )
            has_variants = Path(pretrained_model_name_or_path, f"{_VARIANTS}.py").is_file()
            reference = f"{_VARIANTS if has_variants else Path(__file__).stem}.{cls.__name__}"
            own: Any = get_class_from_dynamic_module(reference, pretrained_model_name_or_path)
            if cls._auto_class:
                own.register_for_auto_class(cls._auto_class)  # so that saving keeps the code
            return own.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def _from_config(cls, config: RoFormerV2Config, **kwargs: Any) -> Any:
        if not cls._is_code_of(config.name_or_path):
            raise ValueError(
                f"{config.name_or_path}: carries other modelling code than the folder that was opened before it; build "
                "a model of its configuration in a process of its own"
            )
        return super()._from_config(config, **kwargs)

    @classmethod
    def _is_code_of(cls, folder: Any) -> bool:
        """Whether ``folder`` has no other code than this; a class that was imported by name is always meant."""
        is_variant = cls.__module__ == f"{__package__}.{_VARIANTS}"
        is_imported = not __name__.startswith("transformers_modules.") or not (is_variant or cls.__module__ == __name__)
        if is_imported or not folder or not Path(folder, Path(__file__).name).is_file():
            return True
        return _code_in(Path(folder)) == _code_in(Path(__file__).parent, with_variants=is_variant)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # the kernel is chosen in every forward; transformers guesses from the source

    def _check_and_adjust_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> str:
        if attn_implementation is not None:
            check_attention(attn_implementation)
        chosen = super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)
        return check_attention(chosen, prefix_lm=self.config.prefix_lm)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in transformers; the new tokens are predicted, rows that only fill the table up are not."""
        table = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        if new_num_tokens is not None:
            self.config.num_tokens = new_num_tokens
        return table

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            num_layers = self.config.num_hidden_layers
            depth = {"released": 1, "depth_2n": 2 * num_layers}.get(self.config.init, num_layers)
            std = _TRUNCATION * (depth * self._fan(module)) ** -0.5
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def _fan(self, module: nn.Linear | nn.Embedding) -> float:
        if isinstance(module, nn.Embedding):
            return module.embedding_dim
        m, n = module.in_features, module.out_features
        means = {"arithmetic": (m + n) / 2, "geometric": (m * n) ** 0.5, "quadratic": (m * m + n * n) / (m + n)}
        return means.get(self.config.init, m)

    def _returned(self, output: ModelOutput, return_dict: bool | None) -> Any:
        """The output, or its tuple where the caller or the configuration asks for that."""
        wanted = self.config.return_dict if return_dict is None else return_dict
        return output if wanted else output.to_tuple()


class RoFormerV2Model(RoFormerV2PreTrainedModel):
    """The encoder without heads."""

    def __init__(self, config: RoFormerV2Config) -> None:
        super().__init__(config)
        self.embeddings = RoFormerV2Embeddings(config)
        self.encoder = _Encoder(config)
        self.norm = RMSNorm(config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The word table [V, E]."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word table."""
        self.embeddings.word_embeddings = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        sequence_starts: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple[Tensor, ...]:
        """Encode [B, S] tokens into ``last_hidden_state`` [B, S, E].

        Args:
            input_ids: [B, S].
            attention_mask: [B, S], 1 for tokens and 0 for padding; default all ones.
            token_type_ids: [B, S], 0 for the first segment, 1 for the second; default 0.
            position_ids: [B, S]; default 0, 1, 2...
            inputs_embeds: [B, S, E] in place of ``input_ids``.
            sequence_ids: [B, S] of a packed row: attention stays inside equal numbers; replaces
                ``attention_mask``.
            sequence_starts: Beside ``sequence_ids``: int32 [n], the first slots of its runs of equal numbers, counted
                through all rows, then B · S, once or more. Whoever knows them spares a GPU the search, and the host the
                wait for it; a fixed n is one shape for compilers.
            output_hidden_states: Also return the embedding output and every layer's output.
            output_attentions: Also return every layer's probabilities [B, H, S, S], with
                ``attn_implementation="eager"`` only.
            return_dict: False returns a tuple.
        """
        given = check_inputs(
            self.config,
            input_ids,
            inputs_embeds,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            sequence_ids=sequence_ids,
        )
        _check_starts(sequence_starts, sequence_ids)
        if not _is_traced():  # set in the configuration, it has not been looked at
            check_attention(self.config._attn_implementation, prefix_lm=self.config.prefix_lm)
        shape, device = given.shape[:2], given.device
        segments = token_type_ids if self.config.prefix_lm else None
        if token_type_ids is None:
            token_type_ids = torch.zeros(shape, dtype=torch.long, device=device)
        if position_ids is None:
            position_ids = torch.arange(shape[1], device=device)[None]
        rotary = rotary_table(
            position_ids, self.config.hidden_size // self.config.num_attention_heads, self.config.rotary_base
        )
        x = self.embeddings(input_ids, token_type_ids, inputs_embeds)
        seen = self._visibility(sequence_ids, sequence_starts, attention_mask, shape, segments)
        if self.config.output_attentions if output_attentions is None else output_attentions:
            seen = self._recorded(seen)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        states = [x]
        for layer in self.encoder.layer:
            x = layer(x, rotary, seen)
            if wanted:
                states.append(x)
        if self.config.norm_placement == "pre":
            x = states[-1] = self.norm(x)
        output = BaseModelOutput(
            last_hidden_state=x,
            hidden_states=tuple(states) if wanted else None,
            attentions=tuple(seen.probabilities) if seen.probabilities is not None else None,
        )
        return self._returned(output, return_dict)

    def _recorded(self, seen: Visibility) -> Visibility:
        if self.config._attn_implementation != "eager" or seen.long is not None:
            raise ValueError(
                f"output_attentions with attn_implementation={self.config._attn_implementation!r}, "
                f"attention_window={self.config.attention_window}: no kernel keeps the probabilities but the plain "
                "eager one; load the model with attn_implementation='eager' and without a window"
            )
        return seen._replace(probabilities=[])

    def _visibility(
        self,
        sequence_ids: Tensor | None,
        starts: Tensor | None,
        attention_mask: Tensor | None,
        shape: torch.Size,
        segments: Tensor | None,
    ) -> Visibility:
        """What attention of all layers needs to know, the options for long inputs included."""
        if segments is not None:
            return Visibility(mask=prefix_mask_of(segments, sequence_ids, attention_mask))
        window, log_n_scale = self.config.attention_window, self.config.log_n_scale
        is_windowed = window and shape[1] > window
        if not log_n_scale and not is_windowed:
            return self._sequences(sequence_ids, starts, attention_mask)
        ids = attention_mask if sequence_ids is None else sequence_ids  # padding is one more sequence
        ids = torch.ones(shape, device=self.device).long() if ids is None else ids.long()
        if is_windowed:
            return Visibility(long=LongInput(ids, window, log_n_scale))
        scale = log_n_factor(sequence_sizes(ids), log_n_scale)[:, :, None, None, None]
        return self._sequences(sequence_ids, starts, attention_mask)._replace(query_scale=scale)

    def _sequences(
        self, sequence_ids: Tensor | None, starts: Tensor | None, attention_mask: Tensor | None
    ) -> Visibility:
        """Sequences where a kernel for them exists, else a mask; without given starts that costs a wait for a GPU."""
        implementation = self.config._attn_implementation
        if implementation == "flash_attention_2" and sequence_ids is None and attention_mask is not None:
            sequence_ids = attention_mask  # padding is one more sequence
        if implementation != "eager" and sequence_ids is not None and not _is_traced():
            takes_starts = implementation == "flash_attention_2" or self._has_varlen_kernel()
            # Lengths are numbers of the program: compiled layers would be compiled anew for every batch.
            takes_lengths = sequence_ids.device.type == "cpu" and self.encoder.layer[0]._compiled_call_impl is None
            if starts is None and (takes_starts or takes_lengths):
                found = sequence_starts(sequence_ids)
                starts = None if found is None else _in_few_sizes(found).int()
            if starts is not None and takes_starts:
                return Visibility(starts=starts)
            if starts is not None and takes_lengths:
                return Visibility(lengths=[length for length in starts.diff().tolist() if length])
        return Visibility(mask=attention_mask_of(sequence_ids, attention_mask))

    def _has_varlen_kernel(self) -> bool:
        weight = self.embeddings.word_embeddings.weight
        if weight.device.type != "cuda" or torch.cuda.get_device_capability(weight.device) < (8, 0):
            return False
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else weight.dtype
        head_size = self.config.hidden_size // self.config.num_attention_heads
        return dtype in (torch.float16, torch.bfloat16) and head_size % 8 == 0 and head_size <= 256


def check_inputs(
    config: RoFormerV2Config, input_ids: Tensor | None, inputs_embeds: Tensor | None, **per_slot: Tensor | None
) -> Tensor:
    """The one of ``input_ids`` and ``inputs_embeds`` that was given; refuses tensors that cannot be meant, by name.

    Values are looked at on the CPU only: elsewhere that would wait for the device.

    Raises:
        TypeError: If a dtype is wrong.
        ValueError: If a shape is wrong or a number out of range.
    """
    given = input_ids if inputs_embeds is None else inputs_embeds
    if given is None or (input_ids is not None and inputs_embeds is not None):
        raise ValueError("give input_ids or inputs_embeds, one of the two")
    if _is_traced():  # what is traced cannot depend on values
        return given
    if inputs_embeds is not None and (inputs_embeds.ndim, inputs_embeds.shape[-1]) != (3, config.hidden_size):
        raise ValueError(f"inputs_embeds has shape {_shape(given)}; expected [rows, slots, {config.hidden_size}]")
    if given.ndim != (2 if inputs_embeds is None else 3) or given.shape[1] == 0:
        raise ValueError(f"input_ids has shape {_shape(given)}; expected [rows, slots] with at least one slot")
    rows, slots = given.shape[:2]
    limits = {"input_ids": config.vocab_size, "token_type_ids": config.type_vocab_size, "attention_mask": 2}
    if per_slot["sequence_ids"] is not None:
        limits["sequence_ids"] = slots + 1
    for name, value in {"input_ids": input_ids, **per_slot}.items():
        if value is None:
            continue
        if name != "attention_mask" and value.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"{name} is of {value.dtype}; expected torch.int64 or torch.int32")
        allowed = [(rows, slots), (1, slots)] if name == "position_ids" else [(rows, slots)]
        if value.shape not in allowed:
            raise ValueError(f"{name} has shape {_shape(value)}; expected [rows, slots] = {list(allowed[0])}")
        if value.device.type == "cpu" and value.numel():
            _check_range(name, value, limits.get(name))
    is_packed = per_slot["sequence_ids"] is not None
    if slots > config.max_position_embeddings and not (is_packed or config.attention_window):
        logger.warning_once(
            f"input longer than max_position_embeddings={config.max_position_embeddings}, the longest in training: it "
            "is computed, but expect worse results; attention_window and log_n_scale of the configuration help"
        )
    return given


def _check_starts(starts: Tensor | None, sequence_ids: Tensor | None) -> None:
    if starts is None or _is_traced():
        return
    if sequence_ids is None:
        raise ValueError("sequence_starts says where the runs of sequence_ids begin; give both")
    if starts.dtype != torch.int32 or starts.ndim != 1 or len(starts) < 2:
        raise TypeError(f"sequence_starts is {starts.dtype} {_shape(starts)}; expected torch.int32 [2 or more]")
    if starts.device.type == "cpu":
        rises = bool((starts.diff() >= 0).all())
        if not rises or starts[0] != 0 or starts[-1] != sequence_ids.numel():
            raise ValueError(f"sequence_starts must rise from 0 to {sequence_ids.numel()}, the number of slots")


def _check_range(name: str, value: Tensor, limit: int | None) -> None:
    low, high = value.min().item(), value.max().item()
    if low < 0 or (limit is not None and high >= limit):
        upper = f"to {limit - 1}" if limit is not None else "upwards"
        raise ValueError(f"{name} goes from {low} to {high}; allowed are numbers from 0 {upper}")


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the labels [...] that are not -100 of logits [..., classes], fp32; 0 where there are none.

    Raises:
        ValueError: If a label has no logit; looked at on the CPU only.
    """
    labels, classes = labels.flatten(), logits.shape[-1]
    if labels.device.type == "cpu" and not _is_traced() and labels.numel() and labels.max().item() >= classes:
        raise ValueError(
            f"labels go up to {labels.max().item()}; allowed are -100 and numbers from 0 to {classes - 1}. If tokens "
            "were added to the tokenizer, call model.resize_token_embeddings(len(tokenizer)) before training"
        )
    total = F.cross_entropy(logits.flatten(0, -2).float(), labels, reduction="sum")
    return total / (labels != -100).sum().clamp(min=1)


class _MaskedLMHead(nn.Module):
    """Dropout and the tied projection, nothing else; half-swapped, the projection sees [x_(E/2:), x_(:E/2)].

    Swapped, a fresh network, which is close to the identity, does not score the token it reads above all others.
    Source: https://kexue.fm/archives/9698 and 9736.
    """

    def __init__(self, config: RoFormerV2Config) -> None:
        super().__init__()
        self.config = config
        self.shift = config.hidden_size // 2 if config.tied_output == "half_swapped" else 0
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def features(self, hidden: Tensor) -> Tensor:
        """What is multiplied with the rows of ``decoder.weight``, [..., E] -> [..., E]."""
        x = self.dropout(hidden)
        return x.roll(self.shift, -1) if self.shift else x

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., E] -> [..., V], without the rows of the word table that are no tokens."""
        logits = self.decoder(self.features(hidden))
        return logits if self.config.num_tokens is None else logits[..., : self.config.num_tokens]


class _NextSentenceHead(nn.Module):
    """W_c tanh(W_d x) of the [CLS] state; class 0 = B is the next text, 1 = B is from another document."""

    def __init__(self, config: RoFormerV2Config) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.classifier = nn.Linear(config.hidden_size, 2, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., E] -> [..., 2]."""
        return self.classifier(torch.tanh(self.dense(hidden)))


class _Heads(nn.Module):
    """The heads a model has, under the released prefix ``cls``."""

    def __init__(self, config: RoFormerV2Config, *, masked_lm: bool, next_sentence: bool) -> None:
        super().__init__()
        if masked_lm:
            self.predictions = _MaskedLMHead(config)
        if next_sentence:
            self.next_sentence = _NextSentenceHead(config)


class _MaskedLMMixin:
    """Access to the tied output projection."""

    _tied_weights_keys = {"cls.predictions.decoder.weight": "roformer.embeddings.word_embeddings.weight"}  # noqa: RUF012

    def get_output_embeddings(self) -> nn.Linear:
        """The projection onto the vocabulary, tied to the word table."""
        return self.cls.predictions.decoder  # type: ignore[attr-defined]  # set by the model class

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the projection onto the vocabulary."""
        self.cls.predictions.decoder = value  # type: ignore[attr-defined]  # set by the model class


@dataclass
class RoFormerV2ForPreTrainingOutput(ModelOutput):
    """Logits of both heads; ``loss`` = MLM mean + NSP mean over the labels given."""

    loss: Tensor | None = None
    prediction_logits: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class RoFormerV2ForPreTraining(_MaskedLMMixin, RoFormerV2PreTrainedModel):
    """The encoder with the MLM and the NSP head."""

    def __init__(self, config: RoFormerV2Config) -> None:
        super().__init__(config)
        self.roformer = RoFormerV2Model(config)
        self.cls = _Heads(config, masked_lm=True, next_sentence=True)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> RoFormerV2ForPreTrainingOutput | tuple[Tensor, ...]:
        """Score every position and the first token of every row.

        Args:
            input_ids: [B, S].
            attention_mask: As for ``RoFormerV2Model``, like the next two.
            token_type_ids: [B, S].
            position_ids: [B, S].
            labels: [B, S], -100 where nothing is predicted.
            next_sentence_label: [B], 0 = next, 1 = random.
            inputs_embeds: As for ``RoFormerV2Model``, like the next one.
            sequence_ids: [B, S].
            return_dict: False returns a tuple.
            **inputs: Further arguments of ``RoFormerV2Model``.
        """
        encoded = self.roformer(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            sequence_ids,
            return_dict=True,
            **inputs,
        )
        prediction = self.cls.predictions(encoded.last_hidden_state)
        relation = self.cls.next_sentence(encoded.last_hidden_state[:, 0])
        losses = []
        if labels is not None:
            losses.append(mean_cross_entropy(prediction, labels))
        if next_sentence_label is not None:
            losses.append(mean_cross_entropy(relation, next_sentence_label))
        output = RoFormerV2ForPreTrainingOutput(
            loss=torch.stack(losses).sum() if losses else None,
            prediction_logits=prediction,
            seq_relationship_logits=relation,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return self._returned(output, return_dict)


class RoFormerV2ForMaskedLM(_MaskedLMMixin, RoFormerV2PreTrainedModel):
    """The encoder with the MLM head."""

    def __init__(self, config: RoFormerV2Config) -> None:
        super().__init__(config)
        self.roformer = RoFormerV2Model(config)
        self.cls = _Heads(config, masked_lm=True, next_sentence=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> MaskedLMOutput | tuple[Tensor, ...]:
        """``logits`` [B, S, V]; ``labels`` [B, S] with -100 where nothing is predicted."""
        encoded = self.roformer(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            sequence_ids,
            return_dict=True,
            **inputs,
        )
        logits = self.cls.predictions(encoded.last_hidden_state)
        loss = None if labels is None else mean_cross_entropy(logits, labels)
        output = MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )
        return self._returned(output, return_dict)


class RoFormerV2ForNextSentencePrediction(RoFormerV2PreTrainedModel):
    """The encoder with the NSP head."""

    def __init__(self, config: RoFormerV2Config) -> None:
        super().__init__(config)
        self.roformer = RoFormerV2Model(config)
        self.cls = _Heads(config, masked_lm=False, next_sentence=True)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> NextSentencePredictorOutput | tuple[Tensor, ...]:
        """``logits`` [B, 2], class 0 = B is the next text; ``labels`` [B]."""
        encoded = self.roformer(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            sequence_ids,
            return_dict=True,
            **inputs,
        )
        logits = self.cls.next_sentence(encoded.last_hidden_state[:, 0])
        loss = None if labels is None else mean_cross_entropy(logits, labels)
        output = NextSentencePredictorOutput(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )
        return self._returned(output, return_dict)


class _TaskModel(RoFormerV2PreTrainedModel):
    """The encoder with dropout and one linear layer (with bias) for a task of the user's."""

    def __init__(self, config: RoFormerV2Config, num_outputs: int, head: str = "classifier") -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.roformer = RoFormerV2Model(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        setattr(self, head, nn.Linear(config.hidden_size, num_outputs))
        self.post_init()


class RoFormerV2ForSequenceClassification(_TaskModel):
    """A class, several classes or numbers per row, from the state of its first token."""

    def __init__(self, config: RoFormerV2Config) -> None:
        super().__init__(config, config.num_labels)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> SequenceClassifierOutput | tuple[Tensor, ...]:
        """``logits`` [B, num_labels].

        ``labels``: [B] classes; [B, num_labels] zeros and ones as floats; or [B] numbers if num_labels is 1. Where that
        guess is wrong, ``config.problem_type`` decides.
        """
        encoded = self.roformer(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            sequence_ids,
            return_dict=True,
            **inputs,
        )
        logits = self.classifier(self.dropout(encoded.last_hidden_state[:, 0]))
        output = SequenceClassifierOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return self._returned(output, return_dict)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        guess = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
        kind = self.config.problem_type or ("regression" if self.num_labels == 1 else guess)
        if kind == "regression":
            return F.mse_loss(logits.float().reshape(labels.shape), labels.float())
        if kind == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits.float(), labels.float())
        return mean_cross_entropy(logits, labels)


class RoFormerV2ForTokenClassification(_TaskModel):
    """A class per token."""

    def __init__(self, config: RoFormerV2Config) -> None:
        super().__init__(config, config.num_labels)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> TokenClassifierOutput | tuple[Tensor, ...]:
        """``logits`` [B, S, num_labels]; ``labels`` [B, S] with -100 where there is none."""
        encoded = self.roformer(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            sequence_ids,
            return_dict=True,
            **inputs,
        )
        logits = self.classifier(self.dropout(encoded.last_hidden_state))
        output = TokenClassifierOutput(
            loss=None if labels is None else mean_cross_entropy(logits, labels),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return self._returned(output, return_dict)


class RoFormerV2ForQuestionAnswering(_TaskModel):
    """Where the answer starts and where it ends."""

    def __init__(self, config: RoFormerV2Config) -> None:
        super().__init__(config, 2, head="qa_outputs")

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> QuestionAnsweringModelOutput | tuple[Tensor, ...]:
        """Logits [B, S] of both; the positions are [B], and one outside of the row counts for nothing."""
        encoded = self.roformer(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            sequence_ids,
            return_dict=True,
            **inputs,
        )
        start, end = self.qa_outputs(self.dropout(encoded.last_hidden_state)).unbind(-1)
        losses = [
            mean_cross_entropy(logits, positions.flatten().masked_fill(positions.flatten() >= logits.shape[1], -100))
            for logits, positions in ((start, start_positions), (end, end_positions))
            if positions is not None
        ]
        output = QuestionAnsweringModelOutput(
            loss=torch.stack(losses).mean() if losses else None,
            start_logits=start,
            end_logits=end,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return self._returned(output, return_dict)


class RoFormerV2ForMultipleChoice(_TaskModel):
    """One of several texts, each scored from the state of its first token."""

    def __init__(self, config: RoFormerV2Config) -> None:
        super().__init__(config, 1)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> MultipleChoiceModelOutput | tuple[Tensor, ...]:
        """Inputs [B, choices, S], ``logits`` [B, choices], ``labels`` [B]."""
        given = input_ids if input_ids is not None else inputs_embeds
        if given is None or given.ndim < 3:
            shape = "nothing" if given is None else _shape(given)
            raise ValueError(f"a multiple choice needs input_ids of [rows, choices, slots]; given: {shape}")
        rows, choices = given.shape[:2]
        per_slot = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "sequence_ids": sequence_ids,
        }
        tensors = {name: None if value is None else value.flatten(0, 1) for name, value in per_slot.items()}
        encoded = self.roformer(**tensors, return_dict=True, **inputs)
        logits = self.classifier(self.dropout(encoded.last_hidden_state[:, 0])).view(rows, choices)
        output = MultipleChoiceModelOutput(
            loss=None if labels is None else mean_cross_entropy(logits, labels),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return self._returned(output, return_dict)
