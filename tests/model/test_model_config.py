"""The ``model`` section: what it refuses, and how."""

from __future__ import annotations

import pytest

from kexue_train.foundation.errors import ConfigError
from kexue_train.model.config import ModelConfig


def parse(**values: object) -> ModelConfig:
    return ModelConfig.parse(values, where="run.yaml")


def test_defaults_are_the_released_base_size():
    config = ModelConfig()
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (12, 768, 12)
    assert (config.intermediate_size, config.max_position_embeddings, config.rms_norm_eps) == (3072, 512, 1e-12)


@pytest.mark.parametrize(("hidden", "heads"), [(100, 3), (12, 4), (2, 4)], ids=["rest", "odd head", "too many"])
def test_heads_must_be_whole_and_even(hidden, heads):
    with pytest.raises(ConfigError, match=f"hidden_size={hidden} .*num_attention_heads={heads}.*multiple of twice"):
        parse(hidden_size=hidden, num_attention_heads=heads)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("num_hidden_layers", 0, "greater than 0"),
        ("hidden_size", -64, "greater than 0"),
        ("hidden_dropout_prob", 1.0, "less than 1"),
        ("attention_probs_dropout_prob", -0.1, "greater than or equal to 0"),
        ("rms_norm_eps", 0.0, "greater than 0"),
        ("num_attention_heads", "12", "valid integer"),
    ],
)
def test_messages_name_the_key_the_value_and_what_is_allowed(key, value, allowed):
    with pytest.raises(ConfigError, match=rf"run\.yaml: {key}=.*{value}.*{allowed}"):
        parse(**{key: value})


def test_a_misspelt_key_is_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match="unknown key 'hiden_size', did you mean 'hidden_size'"):
        parse(hiden_size=64)
