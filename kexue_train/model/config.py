"""The ``model`` section: size and regularisation of the encoder. The vocabulary size comes from the tokenizer."""

from typing import Literal, Self

from pydantic import Field, model_validator

from kexue_train.foundation.config import Config, refuse_without_effect

Activation = Literal["relu", "gelu", "silu", "sigmoid", "tanh", "linear"]


class ModelConfig(Config):
    """Size of a RoFormerV2 encoder; names as in Hugging Face configurations."""

    num_hidden_layers: int = Field(default=12, gt=0)
    """Transformer layers."""
    hidden_size: int = Field(default=768, gt=0)
    """Width of the residual stream."""
    num_attention_heads: int = Field(default=12, gt=0)
    """Attention heads; the head size hidden_size / num_attention_heads must be even (rotary positions turn pairs)."""
    intermediate_size: int = Field(default=3072, gt=0)
    """Width of the feed-forward layer."""
    hidden_act: Activation | tuple[Activation, Activation] = "relu"
    """Feed-forward layer: one activation, "relu" as released, or two of a gated layer, act1(x W1) · act2(x W2), such as
    [gelu, linear]; with a third more weights at the same width."""
    norm_placement: Literal["post", "pre"] = "post"
    """"post": norm(x + F(x)), as released; "pre": x + F(norm(x)) and a norm before the heads, needs no warm-up but is
    worse to fine-tune."""
    init: Literal["depth_n", "depth_2n", "released", "arithmetic", "geometric", "quadratic"] = "depth_n"
    """Variance of fresh weights: "depth_n" is 1 / (layers · fan-in), "depth_2n" half of it, "released" 1 / fan-in
    (stable only with train.objective.residual_ramp_steps); the last three take a mean of fan-in and
    fan-out for fan-in."""
    tied_output: Literal["plain", "half_swapped"] = "plain"
    """Word logits: "plain" is x · E with the word table E, as released; "half_swapped" is S[x] · E, S swapping the
    halves of x: the first loss is log V, and the rows of rare words behave."""
    attention_window: int | None = Field(default=None, ge=2)
    """In sequences of more tokens than this, a token sees only those at most half of it away, in training and in the
    exported model; shorter ones are computed as without it."""
    log_n_scale: int | None = Field(default=None, ge=2)
    """Attention scores of a token that sees n are multiplied by log(max(n, 16)) / log(log_n_scale), in training and in
    the exported model, which then reads longer texts better; 512 is usual."""
    attention: Literal["softmax", "grouped", "latent", "linear"] = "softmax"
    """"softmax": as released; "grouped": fewer heads of keys and values; "latent": keys and values from a narrow
    latent; "linear": work grows with the length. What each costs and gains: docs/model.md."""
    num_key_value_heads: int | None = Field(default=None, gt=0)
    """Grouped attention: heads of keys and values, a divisor of num_attention_heads; 1 is multi-query attention."""
    latent_size: int | None = Field(default=None, gt=0)
    """Latent attention: numbers per token that keys and values are made from."""
    latent_rotary_size: int | None = Field(default=None, ge=2)
    """Latent attention: how much of a head is rotated, a divisor of the head size; by default half of it."""
    hidden_dropout_prob: float = Field(default=0.1, ge=0, lt=1)
    """Dropout of embeddings, branches and the MLM head's input."""
    attention_probs_dropout_prob: float = Field(default=0.1, ge=0, lt=1)
    """Dropout of attention probabilities."""
    max_position_embeddings: int = Field(default=512, gt=0)
    """Longest sequence the exported tokenizer produces; rotary positions themselves have no limit."""
    rms_norm_eps: float = Field(default=1e-12, gt=0)
    """Added to the mean square in every norm; 1e-12 is the released value."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % self.num_attention_heads or (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError(
                f"hidden_size={self.hidden_size} does not divide into num_attention_heads={self.num_attention_heads} "
                "heads of an even size; choose hidden_size as a multiple of twice the number of heads"
            )
        return self

    @model_validator(mode="after")
    def _attention_has_its_options(self) -> Self:
        without, head_size = f"with attention={self.attention}", self.hidden_size // self.num_attention_heads
        if self.attention != "grouped":
            refuse_without_effect(self, "num_key_value_heads", because=without)
        elif not self.num_key_value_heads or self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads={self.num_key_value_heads}: attention=grouped needs a divisor of "
                f"num_attention_heads={self.num_attention_heads}"
            )
        if self.attention != "latent":
            refuse_without_effect(self, "latent_size", "latent_rotary_size", because=without)
        else:
            rotated = self.latent_rotary_size or head_size // 2
            if not self.latent_size or rotated % 2 or head_size % rotated or rotated == head_size:
                raise ValueError(
                    f"latent_size={self.latent_size}, latent_rotary_size={rotated}: attention=latent needs a "
                    f"latent_size, and an even divisor of the head size {head_size}, less than that, to rotate"
                )
        if self.attention == "linear":
            refuse_without_effect(self, "attention_window", "log_n_scale", because=without)
            if self.attention_probs_dropout_prob:
                raise ValueError(
                    f"attention_probs_dropout_prob={self.attention_probs_dropout_prob} has no effect {without}, which "
                    "has no probabilities; set it to 0"
                )
        return self


def problem_of_attention(attention: str, *, recompute: str = "none", is_compiled: bool = False) -> str | None:
    """Return what an attention cannot be combined with, and what to take instead; None if nothing is wrong."""
    if attention == "latent" and recompute == "selective":
        return (
            "attention=latent with recompute=selective, which counts the products of the plain attention and would "
            "keep the wrong ones; take recompute=full or none"
        )
    if attention == "linear" and is_compiled:
        return (
            "attention=linear with compile=true, which would be compiled anew for every batch, as the lengths of the "
            "sequences are numbers of the program; take compile=false"
        )
    return None
