"""The ``model`` section: size and regularisation of the encoder. The vocabulary size comes from the tokenizer."""

from typing import Literal, Self

from pydantic import Field, model_validator

from kexue_train.foundation.config import Config

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
