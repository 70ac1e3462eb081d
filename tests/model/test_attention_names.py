"""An attention kernel that is named, in whatever way, is used or refused."""

from __future__ import annotations

import pytest
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from kexue_train.model import RoFormerV2ForMaskedLM
from kexue_train.model.modeling_roformer_v2 import ATTENTION_IMPLEMENTATIONS

IGNORED = ["mine", "paged|eager", "paged|sdpa", "flex_attention", "flash_attention_3", "kernels-community/flash-attn2"]


@pytest.fixture
def register(monkeypatch):
    """Register a kernel for this test only."""

    def add(name, kernel=lambda *_: None):
        monkeypatch.setitem(AttentionInterface._global_mapping, name, kernel)

    return add


@pytest.mark.parametrize("name", IGNORED)
def test_a_kernel_that_would_be_ignored_is_refused_wherever_it_is_named(register, make_model, tmp_path, tokens, name):
    register("mine")
    model = make_model()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="RoFormerV2 has kernels of its own and would not call"):
        model.set_attn_implementation(name)
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match="use sdpa, eager, flash_attention_2"):
        RoFormerV2ForMaskedLM.from_pretrained(tmp_path, attn_implementation=name)
    model.config._attn_implementation = name
    with pytest.raises(ValueError, match="would not call"):
        model(tokens(1, 5))


@pytest.mark.parametrize("name", ATTENTION_IMPLEMENTATIONS[:2])
def test_a_kernel_registered_under_the_name_of_another_is_refused(register, make_model, tokens, name):
    model = make_model(attention=name)
    register(name)
    with pytest.raises(ValueError, match=f"'{name}': .*would not call a kernel that was registered under this name"):
        model(tokens(1, 5))
    register(name, sdpa_attention_forward)
    model(tokens(1, 5))


def test_the_kernels_of_the_model_can_be_changed_at_any_time(make_model, tokens):
    model = make_model()
    fused = model(tokens(1, 5)).prediction_logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(tokens(1, 5)).prediction_logits, fused, atol=1e-4, rtol=1e-4)
