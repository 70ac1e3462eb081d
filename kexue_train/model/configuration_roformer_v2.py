"""Hugging Face configuration of RoFormerV2. Copied into every exported folder; needs only transformers."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from transformers import PretrainedConfig

ACTIVATIONS = ("relu", "gelu", "silu", "sigmoid", "tanh", "linear")
NORM_PLACEMENTS = ("post", "pre")
TIED_OUTPUTS = ("plain", "half_swapped")
ATTENTIONS = ("softmax", "grouped", "latent", "linear")
INITS = ("depth_n", "depth_2n", "released", "arithmetic", "geometric", "quadratic")

# Options that only one attention has.
_OPTIONS_OF = {"num_key_value_heads": "grouped", "latent_size": "latent", "latent_rotary_size": "latent"}
# Facts of the architecture that JunnYu/RoFormer_pytorch has as options; written so that it, too, reads our folders.
_FIXED = {"norm_type": "rms_norm", "use_bias": False, "rotary_value": False}
# What transformers takes beside the attributes of an empty configuration.
_COMMON = {
    "attn_implementation",
    "auto_map",
    "dtype",
    "num_labels",
    "output_attentions",
    "tokenizer_class",
    "torch_dtype",
}


class RoFormerV2Config(PretrainedConfig):
    """Configuration of RoFormerV2; defaults are the released base size.

    Args:
        vocab_size: Rows of the word table.
        num_tokens: Tokens of the vocabulary; rows beyond them only fill the table up and get no logits. None: all rows.
        hidden_size: Width of the residual stream; a multiple of twice the number of heads.
        num_hidden_layers: Transformer layers.
        num_attention_heads: Attention heads.
        intermediate_size: Width of the feed-forward layer.
        hidden_act: A name of ``ACTIVATIONS``, ``"relu"`` as released; or two for a gated layer act₁(x W₁) · act₂(x W₂).
        hidden_dropout_prob: Dropout of embeddings, branches and heads.
        attention_probs_dropout_prob: Dropout of attention probabilities.
        max_position_embeddings: Longest sequence in training; longer ones are computed, with a warning.
        type_vocab_size: Segments.
        layer_norm_eps: Added to the mean square in every norm.
        rotary_base: The base of the rotary frequencies.
        norm_placement: ``"post"``: Norm(x + F(x)), as released; ``"pre"``: x + F(Norm(x)) and a last norm.
        init: Size of fresh weights, see ``RoFormerV2PreTrainedModel``.
        attention_window: In sequences of more tokens than this, a token sees only those at most half of it away.
        log_n_scale: Attention scores of a token that sees n are multiplied by log(max(n, 16)) / log(log_n_scale).
        prefix_lm: Tokens of the first segment see the first alone; those of the second see it and the second up to
            themselves (UniLM), so that the model also writes the second segment. Without second segment: no change.
        pad_token_id: The padding token.
        tie_word_embeddings: The word head is the word table.
        tied_output: ``"plain"``: logits x · E, as released; ``"half_swapped"``: S[x] · E with the halves of x swapped.
        embedding_size: None, or hidden_size.
        attention: A name of ``ATTENTIONS``, ``"softmax"`` as released; the others are in ``variants_roformer_v2.py``.
        num_key_value_heads: Heads of keys and values under grouped attention; a divisor of num_attention_heads.
        latent_size: Numbers that keys and values are made from under latent attention.
        latent_rotary_size: How much of a head is rotated there, an even divisor of its size; None: half of it.
        **kwargs: What every Hugging Face configuration takes, such as ``num_labels``.

    Raises:
        ValueError: If a value is not allowed, or an option unknown (what a config.json has beyond these is kept).
    """

    model_type = "roformer_v2"

    def __init__(
        self,
        vocab_size: int = 12000,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_act: str | list[str] = "relu",
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        max_position_embeddings: int = 512,
        type_vocab_size: int = 2,
        layer_norm_eps: float = 1e-12,
        rotary_base: float = 10000.0,
        norm_placement: str = "post",
        init: str = "depth_n",
        attention_window: int | None = None,
        log_n_scale: int | None = None,
        prefix_lm: bool = False,
        pad_token_id: int = 0,
        tie_word_embeddings: bool = True,
        tied_output: str = "plain",
        embedding_size: int | None = None,
        num_tokens: int | None = None,
        attention: str = "softmax",
        num_key_value_heads: int | None = None,
        latent_size: int | None = None,
        latent_rotary_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act if isinstance(hidden_act, str) else list(hidden_act)
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.layer_norm_eps = layer_norm_eps
        self.rotary_base = rotary_base
        self.norm_placement = norm_placement
        self.init = init
        self.attention_window = attention_window
        self.log_n_scale = log_n_scale
        self.prefix_lm = prefix_lm
        self.tie_word_embeddings = tie_word_embeddings
        self.tied_output = tied_output
        self.embedding_size = hidden_size if embedding_size is None else embedding_size
        self.num_tokens = num_tokens
        self.attention = attention
        self.num_key_value_heads = num_key_value_heads
        self.latent_size = latent_size
        self.latent_rotary_size = latent_rotary_size
        for name, value in _FIXED.items():
            setattr(self, name, kwargs.pop(name, value))
        if "transformers_version" not in kwargs:  # a dictionary read from a file may hold what others have added
            _refuse_unknown(kwargs)
        self.check_options()
        super().__init__(pad_token_id=pad_token_id, tie_word_embeddings=tie_word_embeddings, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; refuses the configuration of another model.

        Raises:
            ValueError: If it is of another model type, or of a RoFormer that is not version 2.
        """
        found = config_dict.get("model_type", cls.model_type)
        # JunnYu/RoFormer_pytorch calls both versions "roformer"; the other keys tell them apart.
        is_version_2 = config_dict.get("norm_type") == "rms_norm" and config_dict.get("use_bias") is False
        if found != cls.model_type and not (found == "roformer" and is_version_2):
            version_1 = " version 1, with layer norms and biases" if found == "roformer" else ""
            raise ValueError(
                f"the configuration is of model_type={found!r}{version_1}; {cls.__name__} reads {cls.model_type!r}, "
                "and 'roformer' with norm_type='rms_norm' and use_bias=false. Use AutoModel, or give another folder"
            )
        return super().from_dict(
            {"transformers_version": None} | config_dict | {"model_type": cls.model_type}, **kwargs
        )

    def check_options(self) -> None:
        """Refuse values that this architecture does not have.

        Raises:
            ValueError: With the option, its value and what is allowed.
        """
        heads, width = self.num_attention_heads, self.hidden_size
        _check_activation(self.hidden_act)
        choices = {
            "norm_placement": NORM_PLACEMENTS,
            "init": INITS,
            "tied_output": TIED_OUTPUTS,
            "attention": ATTENTIONS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: allowed are {', '.join(allowed)}")
        if self.tied_output != "plain" and not self.tie_word_embeddings:
            raise ValueError(
                f"tied_output={self.tied_output!r} with tie_word_embeddings=False: a word head of its own has nothing "
                "to swap; tie the two, or leave tied_output at 'plain'"
            )
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            if not _is_number(getattr(self, name), at_least=1):
                raise ValueError(f"{name}={getattr(self, name)!r}: give a whole number of at least 1")
        tokens, rows = self.num_tokens, self.vocab_size
        if tokens is not None and not (_is_number(tokens, at_least=1) and tokens <= rows):
            raise ValueError(f"num_tokens={tokens!r}: give None or a whole number from 1 to vocab_size={rows}")
        if width % heads or width // heads % 2:
            raise ValueError(
                f"hidden_size={width} does not divide into num_attention_heads={heads} heads of an even size; choose "
                "hidden_size as a multiple of twice the number of heads"
            )
        for name in ("attention_window", "log_n_scale"):
            if getattr(self, name) is not None and not _is_number(getattr(self, name), at_least=2):
                raise ValueError(f"{name}={getattr(self, name)!r}: give None or a whole number of at least 2")
        self._check_prefix_lm()
        for name, value in (_FIXED | {"embedding_size": width}).items():
            if getattr(self, name) != value:
                raise ValueError(f"{name}={getattr(self, name)!r}: this model has {name}={value!r} only")
        self._check_attention()

    def _check_attention(self) -> None:
        head_size = self.hidden_size // self.num_attention_heads
        for name, owner in _OPTIONS_OF.items():
            if getattr(self, name) is not None and self.attention != owner:
                raise ValueError(f"{name}={getattr(self, name)!r} has no effect with attention={self.attention!r}")
        groups, rotated = self.num_key_value_heads, self.latent_rotary_size
        if self.attention == "grouped" and (not groups or self.num_attention_heads % groups):
            raise ValueError(
                f"num_key_value_heads={groups!r}: grouped attention needs a divisor of "
                f"num_attention_heads={self.num_attention_heads}"
            )
        if self.attention == "latent":
            if not _is_number(self.latent_size, at_least=1):
                raise ValueError(f"latent_size={self.latent_size!r}: latent attention needs a number of at least 1")
            rotated = head_size // 2 if rotated is None else rotated
            if not _is_number(rotated, at_least=2) or rotated % 2 or head_size % rotated or rotated == head_size:
                raise ValueError(
                    f"latent_rotary_size={rotated!r}: give an even divisor of the head size {head_size}, less than that"
                )
        if self.attention == "linear":
            for name in ("attention_window", "log_n_scale", "attention_probs_dropout_prob"):
                if getattr(self, name):
                    raise ValueError(
                        f"{name}={getattr(self, name)!r} has no effect with attention='linear', which has no scores "
                        f"and no probabilities; set it to {0.0 if 'prob' in name else None}"
                    )

    def _check_prefix_lm(self) -> None:
        if self.prefix_lm not in (True, False):
            raise ValueError(f"prefix_lm={self.prefix_lm!r}: give True or False")
        if self.prefix_lm and self.type_vocab_size < 2:
            raise ValueError(f"prefix_lm=True with type_vocab_size={self.type_vocab_size}: it needs two segments")
        for name in ("attention_window", "log_n_scale"):
            if self.prefix_lm and getattr(self, name) is not None:
                raise ValueError(
                    f"prefix_lm=True with {name}={getattr(self, name)!r}: the kernel for long inputs does not know "
                    "segments; leave one of the two out"
                )


def _check_activation(act: str | list[str]) -> None:
    names = [act, "linear"] if isinstance(act, str) else act
    if len(names) != 2 or not all(name in ACTIVATIONS for name in names):
        raise ValueError(
            f"hidden_act={act!r}: give one of {', '.join(ACTIVATIONS)} (RoFormerV2 uses 'relu'), or a list of two for "
            "a gated layer, such as ['gelu', 'linear']"
        )


def _is_number(value: object, *, at_least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least


def _refuse_unknown(options: dict[str, Any]) -> None:
    common = _COMMON | vars(PretrainedConfig()).keys() | set(dir(PretrainedConfig))
    for name in options.keys() - common:
        own = [key for key in inspect.signature(RoFormerV2Config.__init__).parameters if key not in ("self", "kwargs")]
        near = difflib.get_close_matches(name, own, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(own)}"
        raise ValueError(f"RoFormerV2Config has no option {name!r}; {hint}")
