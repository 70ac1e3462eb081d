"""RoFormerV2 for PyTorch and Hugging Face, self-contained: copied into every exported folder.

Legend: B rows, S token slots of a row, H heads, D size of a head, E = H·D hidden size, V vocabulary.

    x = RMSNorm(Dropout(word[input_ids] + segment[token_type_ids]))
    per layer:  x = RMSNorm(x + Dropout(Attention(x)));  x = RMSNorm(x + Dropout(W_f relu(W_i x)))
    MLM logits: Dropout(x) · wordᵀ (tied, no transform, no bias);  NSP logits: W_c tanh(W_d x[CLS]) (no bias)

No bias anywhere, no gain in the norms, rotary positions on q and k in interleaved pairs (2i, 2i+1), never on v.
Source: https://kexue.fm/archives/8998 and bert4keras ``RoFormerV2``; parameter names as in JunnYu/RoFormer_pytorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput, NextSentencePredictorOutput
from transformers.utils import ModelOutput

from .configuration_roformer_v2 import RoFormerV2Config

# A normal cut at ±2σ has 0.7737 of the variance; this factor gives it back. Source: kexue.fm/archives/8620.
_TRUNCATION = 1.13684723


def rotary_table(position_ids: Tensor, head_size: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotation, fp32, each [B, 1, S, D/2]; angle i is position · base^(-2i/D)."""
    # An fp32 angle is off by 2e-5 at position 500, more than everything else in the forward pass; MPS has no fp64.
    wide = torch.float32 if position_ids.device.type == "mps" else torch.float64
    exponent = torch.arange(0, head_size, 2, dtype=wide, device=position_ids.device) / head_size
    angles = position_ids[:, None, :, None].to(wide) * base**-exponent
    return angles.cos().float(), angles.sin().float()


def apply_rope(x_BHSD: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:  # noqa: N803  # shape suffix
    """Rotate each pair (2i, 2i+1) of the last dimension; same shape and dtype."""
    cos, sin = rotary
    even, odd = x_BHSD[..., 0::2].float(), x_BHSD[..., 1::2].float()
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x_BHSD.dtype)


def attention_mask_of(sequence_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor | None:
    """Boolean mask, True where a query may see a key: [B, 1, S, S] for packed rows, [B, 1, 1, S] for padded ones.

    Args:
        sequence_ids: [B, S]; tokens with equal numbers see each other and nobody else (0 marks padding).
        attention_mask: [B, S]; 1 for tokens, 0 for padding.
    """
    if sequence_ids is not None:
        return (sequence_ids[:, None, :, None] == sequence_ids[:, None, None, :]).contiguous()
    if attention_mask is None or bool(attention_mask.all()):
        return None
    return attention_mask[:, None, None, :].bool()


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) over the last dimension, without gain; the statistics are fp32."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype."""
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype)


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
        self.num_heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.eager = getattr(config, "_attn_implementation", "sdpa") == "eager"
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.key = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.value = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """[B, S, E] -> [B, S, E]; ``mask`` is True where a query may see a key."""
        split = (*x.shape[:2], self.num_heads, -1)
        q, k, v = (linear(x).view(split).transpose(1, 2) for linear in (self.query, self.key, self.value))
        q, k = apply_rope(q, rotary), apply_rope(k, rotary)
        dropout = self.dropout if self.training else 0.0
        attend = eager_attention if self.eager else F.scaled_dot_product_attention
        return attend(q, k, v, attn_mask=mask, dropout_p=dropout).transpose(1, 2).flatten(2)


def eager_attention(q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Tensor | None, dropout_p: float) -> Tensor:
    """Attention with the [S, S] probabilities written out; the reference for the fused kernels."""
    scores = (q.float() @ k.float().transpose(-1, -2)) * q.shape[-1] ** -0.5
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    return F.dropout(scores.softmax(-1), dropout_p).to(v.dtype) @ v


class _Attention(nn.Module):
    """Groups the projections under the released parameter names ``attention.self.*`` and ``attention.output.dense``."""

    def __init__(self, config: RoFormerV2Config) -> None:
        super().__init__()
        self.self = RoFormerV2SelfAttention(config)
        self.output = _Projection(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        return self.output(self.self(x, rotary, mask))


class _Projection(nn.Module):
    """One bias-free linear layer called ``dense``."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x)


class RoFormerV2Layer(nn.Module):
    """Attention and feed-forward, each followed by dropout, residual and norm."""

    def __init__(self, config: RoFormerV2Config) -> None:
        super().__init__()
        if config.hidden_act != "relu":
            raise ValueError(f"hidden_act={config.hidden_act!r}: RoFormerV2 uses 'relu'")
        self.attention = _Attention(config)
        self.intermediate = _Projection(config.hidden_size, config.intermediate_size)
        self.output = _Projection(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.norm = RMSNorm(config.layer_norm_eps)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """[B, S, E] -> [B, S, E]."""
        x = self.norm(x + self.dropout(self.attention(x, rotary, mask)))
        return self.norm(x + self.dropout(self.output(F.relu(self.intermediate(x)))))


class _Encoder(nn.Module):
    """Holds the layers under the released name ``encoder.layer``."""

    def __init__(self, config: RoFormerV2Config) -> None:
        super().__init__()
        self.layer = nn.ModuleList(RoFormerV2Layer(config) for _ in range(config.num_hidden_layers))


class RoFormerV2PreTrainedModel(PreTrainedModel):
    """Initialisation by role and the Hugging Face conventions."""

    config_class = RoFormerV2Config
    base_model_prefix = "roformer"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["RoFormerV2Layer"]  # noqa: RUF012  # the form transformers expects
    # The released files carry the table of sines and cosines; here it is computed.
    _keys_to_ignore_on_load_unexpected = [r"encoder\.embed_positions\.weight"]  # noqa: RUF012

    def _init_weights(self, module: nn.Module) -> None:
        """Normal cut at ±2σ with true std N^(-1/2)/sqrt(fan-in); tables use their width as fan.

        Source: https://kexue.fm/archives/8620.
        """
        if isinstance(module, nn.Linear | nn.Embedding):
            fan = module.in_features if isinstance(module, nn.Linear) else module.embedding_dim
            std = _TRUNCATION * (self.config.num_hidden_layers * fan) ** -0.5
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)


class RoFormerV2Model(RoFormerV2PreTrainedModel):
    """The encoder without heads."""

    def __init__(self, config: RoFormerV2Config) -> None:
        super().__init__(config)
        self.embeddings = RoFormerV2Embeddings(config)
        self.encoder = _Encoder(config)
        self.gradient_checkpointing = False
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
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
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
            output_hidden_states: Also return the embedding output and every layer's output.
            return_dict: False returns a tuple.
        """
        given = input_ids if input_ids is not None else inputs_embeds
        if given is None:
            raise ValueError("give input_ids or inputs_embeds")
        shape, device = given.shape[:2], given.device
        if token_type_ids is None:
            token_type_ids = torch.zeros(shape, dtype=torch.long, device=device)
        if position_ids is None:
            position_ids = torch.arange(shape[1], device=device)[None]
        rotary = rotary_table(
            position_ids, self.config.hidden_size // self.config.num_attention_heads, self.config.rotary_base
        )
        mask = attention_mask_of(sequence_ids, attention_mask)
        x = self.embeddings(input_ids, token_type_ids, inputs_embeds)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        states = [x]
        for layer in self.encoder.layer:
            if self.gradient_checkpointing and self.training:
                x = self._gradient_checkpointing_func(layer.__call__, x, rotary, mask)
            else:
                x = layer(x, rotary, mask)
            if wanted:
                states.append(x)
        output = BaseModelOutput(last_hidden_state=x, hidden_states=tuple(states) if wanted else None)
        return output if return_dict is not False else output.to_tuple()


class _MaskedLMHead(nn.Module):
    """Dropout and the tied projection, nothing else."""

    def __init__(self, config: RoFormerV2Config) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., E] -> [..., V]."""
        return self.decoder(self.dropout(hidden))


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
            return_dict: False returns a tuple.
            **inputs: Further arguments of ``RoFormerV2Model``.
        """
        encoded = self.roformer(input_ids, attention_mask, token_type_ids, position_ids, **inputs)
        prediction = self.cls.predictions(encoded.last_hidden_state)
        relation = self.cls.next_sentence(encoded.last_hidden_state[:, 0])
        losses = []
        if labels is not None:
            losses.append(F.cross_entropy(prediction.flatten(0, 1).float(), labels.flatten()))
        if next_sentence_label is not None:
            losses.append(F.cross_entropy(relation.float(), next_sentence_label.flatten()))
        output = RoFormerV2ForPreTrainingOutput(
            loss=torch.stack(losses).sum() if losses else None,
            prediction_logits=prediction,
            seq_relationship_logits=relation,
            hidden_states=encoded.hidden_states,
        )
        return output if return_dict is not False else output.to_tuple()


class RoFormerV2ForMaskedLM(_MaskedLMMixin, RoFormerV2PreTrainedModel):
    """The encoder with the MLM head."""

    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012  # the form transformers expects
        r"cls\.next_sentence",
        r"encoder\.embed_positions\.weight",
    ]

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
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> MaskedLMOutput | tuple[Tensor, ...]:
        """``logits`` [B, S, V]; ``labels`` [B, S] with -100 where nothing is predicted."""
        encoded = self.roformer(input_ids, attention_mask, token_type_ids, position_ids, **inputs)
        logits = self.cls.predictions(encoded.last_hidden_state)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        output = MaskedLMOutput(loss=loss, logits=logits, hidden_states=encoded.hidden_states)
        return output if return_dict is not False else output.to_tuple()


class RoFormerV2ForNextSentencePrediction(RoFormerV2PreTrainedModel):
    """The encoder with the NSP head."""

    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012  # the form transformers expects
        r"cls\.predictions",
        r"encoder\.embed_positions\.weight",
    ]

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
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> NextSentencePredictorOutput | tuple[Tensor, ...]:
        """``logits`` [B, 2], class 0 = B is the next text; ``labels`` [B]."""
        encoded = self.roformer(input_ids, attention_mask, token_type_ids, position_ids, **inputs)
        logits = self.cls.next_sentence(encoded.last_hidden_state[:, 0])
        loss = None if labels is None else F.cross_entropy(logits.float(), labels.flatten())
        output = NextSentencePredictorOutput(loss=loss, logits=logits, hidden_states=encoded.hidden_states)
        return output if return_dict is not False else output.to_tuple()
