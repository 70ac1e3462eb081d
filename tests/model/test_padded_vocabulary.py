"""Rows of the word table that are no tokens: they fill it up, and nothing is ever predicted to be one of them."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from kexue_train.model import RoFormerV2ForMaskedLM, RoFormerV2ForPreTraining
from kexue_train.model.config import ModelConfig
from kexue_train.model.hf_folder import build_hf_config

TOKENS = 90  # of 97 rows


def test_the_configuration_of_a_run_says_how_many_rows_are_tokens():
    config = build_hf_config(ModelConfig(), 200)
    assert (config.vocab_size, config.num_tokens) == (256, 200)


@pytest.mark.parametrize("tied_output", ["plain", "half_swapped"])
def test_only_tokens_get_logits_and_those_they_had(make_model, tokens, tied_output):
    whole = make_model(tied_output=tied_output)(tokens(2, 9)).prediction_logits
    padded = make_model(tied_output=tied_output, num_tokens=TOKENS)
    assert torch.equal(padded(tokens(2, 9)).prediction_logits, whole[..., :TOKENS])
    masked = RoFormerV2ForMaskedLM(padded.config).eval()
    masked.load_state_dict(padded.state_dict(), strict=False)
    assert torch.equal(masked(tokens(2, 9)).logits, whole[..., :TOKENS])


def test_the_loss_is_a_cross_entropy_over_the_tokens(make_model, tokens):
    model, labels = make_model(num_tokens=TOKENS), tokens(2, 9, vocab_size=TOKENS)
    output = model(tokens(2, 9), labels=labels)
    expected = cross_entropy(output.prediction_logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert model.get_input_embeddings().weight.grad.isfinite().all()


def test_a_label_that_is_no_token_is_refused_with_what_to_do(make_model):
    ids, labels = torch.tensor([[2, 91, 3]]), torch.tensor([[-100, 91, -100]])
    with pytest.raises(
        ValueError, match=r"labels go up to 91; .* 0 to 89\. .*resize_token_embeddings\(len\(tokenizer\)"
    ):
        make_model(num_tokens=TOKENS)(ids, labels=labels)
    assert make_model()(ids, labels=labels).loss.isfinite()


@pytest.mark.parametrize("multiple", [None, 64])
def test_tokens_that_are_added_are_predicted_and_saved(make_model, tokens, tmp_path, multiple):
    model = make_model(num_tokens=TOKENS)
    model.resize_token_embeddings(92, pad_to_multiple_of=multiple, mean_resizing=False)
    assert model.get_input_embeddings().num_embeddings == (multiple or 46) * 2
    model.save_pretrained(tmp_path)
    loaded = RoFormerV2ForPreTraining.from_pretrained(tmp_path).eval()
    logits = loaded(tokens(1, 5)).prediction_logits
    assert logits.shape[-1] == 92
    assert torch.equal(logits, model(tokens(1, 5)).prediction_logits)
