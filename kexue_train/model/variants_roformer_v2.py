"""RoFormerV2 with another attention: linear, grouped or latent. Folders of plain models do not carry this file.

Legend as in ``modeling_roformer_v2.py``, and G groups of keys and values, C the latent size, R the rotated part of a
head. ``config.attention`` chooses:

    grouped   G key and value heads, each for H/G query heads (G = 1: multi-query; G = H: the plain model)
    latent    keys and values from c = W_c x of C numbers; the first D - R numbers of a head's key are W_k c and not
              rotated, the last R are the rotated W_r x, one for all heads; queries are cut alike
    linear    φ(q)·φ(k) with φ = elu + 1 in place of exp(q·k); rotated in the numerator only, so weights can be negative
              and do not sum to 1; (φ(K)ᵀV) first, so the work grows with S and not with S²

Grouped and latent attention shrink the cache of a decoder. An encoder has none: it saves weights and products, and the
scores cost what they cost before. Sources: https://kexue.fm/archives/10091, 7546 and 8265; DeepSeek-V2,
https://arxiv.org/abs/2405.04434.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads
from torch import Tensor, nn

from .configuration_roformer_v2 import RoFormerV2Config
from .modeling_roformer_v2 import (
    SELF_ATTENTION,
    RoFormerV2PreTrainedModel,
    Visibility,
    apply_rope,
    attention_kernel,
    rotary_of_queries,
)
from .modeling_roformer_v2 import RoFormerV2ForMaskedLM as _MaskedLM
from .modeling_roformer_v2 import RoFormerV2ForMultipleChoice as _MultipleChoice
from .modeling_roformer_v2 import RoFormerV2ForNextSentencePrediction as _NextSentencePrediction
from .modeling_roformer_v2 import RoFormerV2ForPreTraining as _PreTraining
from .modeling_roformer_v2 import RoFormerV2ForQuestionAnswering as _QuestionAnswering
from .modeling_roformer_v2 import RoFormerV2ForSequenceClassification as _SequenceClassification
from .modeling_roformer_v2 import RoFormerV2ForTokenClassification as _TokenClassification
from .modeling_roformer_v2 import RoFormerV2Model as _Model


class GroupedAttention(nn.Module):
    """Fewer heads of keys and values than of queries; the same kernels, masks and options as the plain attention."""

    def __init__(self, config: RoFormerV2Config) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.num_groups = config.num_key_value_heads or self.num_heads
        width = config.hidden_size // self.num_heads * self.num_groups
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.key = nn.Linear(config.hidden_size, width, bias=False)
        self.value = nn.Linear(config.hidden_size, width, bias=False)

    def forward(self, x: Tensor, rotary: Tensor, seen: Visibility) -> Tensor:
        """[B, S, E] -> [B, S, E]."""
        q = self.query(x).view(*x.shape[:2], self.num_heads, -1)
        k, v = (linear(x).view(*x.shape[:2], self.num_groups, -1) for linear in (self.key, self.value))
        q, k = apply_rope(q, rotary_of_queries(rotary, seen)), apply_rope(k, rotary)
        k, v = (groups.repeat_interleave(self.num_heads // self.num_groups, 2) for groups in (k, v))
        return _attend(self, q, k, v, seen)


class LatentAttention(nn.Module):
    """Keys and values of all heads from one narrow latent, positions in a small part that all heads share."""

    def __init__(self, config: RoFormerV2Config) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_size = config.hidden_size // self.num_heads
        self.rotated = config.latent_rotary_size or self.head_size // 2
        content, latent = self.num_heads * (self.head_size - self.rotated), config.latent_size or config.hidden_size
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.latent = nn.Linear(config.hidden_size, latent, bias=False)
        self.key = nn.Linear(latent, content, bias=False)
        self.rotary_key = nn.Linear(config.hidden_size, self.rotated, bias=False)
        self.value = nn.Linear(latent, config.hidden_size, bias=False)

    def forward(self, x: Tensor, rotary: Tensor, seen: Visibility) -> Tensor:
        """[B, S, E] -> [B, S, E]."""
        heads = (*x.shape[:2], self.num_heads, -1)
        angles = rotary[..., :: self.head_size // self.rotated, :]  # every so many of D: the angles of heads of size R
        latent = self.latent(x)
        k, v = self.key(latent).view(*heads[:3], self.head_size - self.rotated), self.value(latent).view(heads)
        k_rotated = apply_rope(self.rotary_key(x)[:, :, None], angles).expand(-1, -1, self.num_heads, -1)
        q, q_rotated = self.query(x).view(heads).split((self.head_size - self.rotated, self.rotated), -1)
        if seen.query_scale is not None:
            q = (q * seen.query_scale[..., 0]).to(q.dtype)
        q = torch.cat((q, apply_rope(q_rotated, rotary_of_queries(angles, seen))), -1)
        return _attend(self, q, torch.cat((k, k_rotated), -1), v, seen)


def _attend(own: GroupedAttention | LatentAttention, q: Tensor, k: Tensor, v: Tensor, seen: Visibility) -> Tensor:
    """The kernel of the plain attention, [B, S, H, D] each -> [B, S, E]."""
    kernel = attention_kernel(own.config._attn_implementation, seen)
    return kernel(q, k, v, seen, own.config.attention_probs_dropout_prob if own.training else 0.0).flatten(2)


class LinearAttention(nn.Module):
    """Attention whose work grows with the length; ``eager`` writes the [S, S] weights out, as a reference."""

    def __init__(self, config: RoFormerV2Config) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.key = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.value = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, rotary: Tensor, seen: Visibility) -> Tensor:
        """[B, S, E] -> [B, S, E].

        Raises:
            ValueError: If probabilities are asked for, which do not exist, or a kernel that would not be called.
        """
        implementation = self.config._attn_implementation
        if seen.probabilities is not None or implementation == "flash_attention_2":
            raise ValueError(
                "attention='linear' has no probabilities to return and no kernel of flash_attn; leave out "
                "output_attentions, and load the model with attn_implementation='sdpa' or 'eager'"
            )
        q, k, v = (linear(x).view(*x.shape[:2], self.num_heads, -1) for linear in (self.query, self.key, self.value))
        with torch.autocast(x.device.type, enabled=False):  # sums over whole sequences
            q, k, v = (part if part.dtype == torch.float64 else part.float() for part in (q, k, v))
            q, k = F.elu(q) + 1, F.elu(k) + 1
            parts = q, k, apply_rope(q, rotary), apply_rope(k, rotary), v
            is_eager = implementation == "eager"
            attended = _explicit_weights(parts, seen.mask) if is_eager else _by_sequence(parts, seen)
        return attended.flatten(2).to(x.dtype)


_Parts = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # φ(q), φ(k), both rotated, v: [B, S, H, D]


def _explicit_weights(parts: _Parts, mask: Tensor | None) -> Tensor:
    """Σ_j (R_i φ(q_i))·(R_j φ(k_j)) v_j / Σ_j φ(q_i)·φ(k_j) over the j that i sees, with all weights written out."""
    q, k, q_rotated, k_rotated, v = (part.transpose(1, 2) for part in parts)
    weights, sizes = q_rotated @ k_rotated.transpose(-1, -2), q @ k.transpose(-1, -2)
    if mask is not None:
        weights, sizes = weights * mask, sizes * mask
    return (weights @ v / sizes.sum(-1, keepdim=True)).transpose(1, 2)


def _by_sequence(parts: _Parts, seen: Visibility) -> Tensor:
    """The same with φ(K)ᵀV first, sequence by sequence; on a GPU packed rows make the host wait for their lengths."""
    lengths = seen.lengths if seen.starts is None else [n for n in seen.starts.diff().tolist() if n]
    if lengths is not None:
        sequences = zip(*(torch.split(part.flatten(0, 1), lengths) for part in parts), strict=True)
        attended = [_associated(tuple(part[None] for part in sequence), None)[0] for sequence in sequences]
        return torch.cat(attended).view_as(parts[0])
    if seen.mask is not None and seen.mask.shape[2] > 1:  # packed rows that only a mask describes
        return _explicit_weights(parts, seen.mask)
    return _associated(parts, seen.mask)


def _associated(parts: tuple[Tensor, ...], mask: Tensor | None) -> Tensor:
    """All tokens see the same: [B, S, H, D] -> [B, S, H, D]."""
    q, k, q_rotated, k_rotated, v = parts
    if mask is not None:
        real = mask[:, 0, 0, :, None, None]
        k, k_rotated = k * real, k_rotated * real
    sums = torch.einsum("bshd,bshe->bhde", k_rotated, v)
    sizes = (q * k.sum(1, keepdim=True)).sum(-1, keepdim=True)
    return torch.einsum("bshd,bhde->bshe", q_rotated, sums) / sizes


SELF_ATTENTION.update({"grouped": GroupedAttention, "latent": LatentAttention, "linear": LinearAttention})

_AnyModel = TypeVar("_AnyModel", bound=RoFormerV2PreTrainedModel)


def _of_this_file(model: type[_AnyModel]) -> type[_AnyModel]:
    """The same model as a class of this module: what a folder names, so that transformers copies this file, too."""
    return type(model.__name__, (model,), {"__module__": __name__, "__doc__": model.__doc__})


RoFormerV2Model = _of_this_file(_Model)
RoFormerV2ForPreTraining = _of_this_file(_PreTraining)
RoFormerV2ForMaskedLM = _of_this_file(_MaskedLM)
RoFormerV2ForNextSentencePrediction = _of_this_file(_NextSentencePrediction)
RoFormerV2ForSequenceClassification = _of_this_file(_SequenceClassification)
RoFormerV2ForTokenClassification = _of_this_file(_TokenClassification)
RoFormerV2ForQuestionAnswering = _of_this_file(_QuestionAnswering)
RoFormerV2ForMultipleChoice = _of_this_file(_MultipleChoice)
