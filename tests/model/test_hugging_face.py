"""What users of transformers rely on: folders, tied weights, losses, argument names."""

from __future__ import annotations

import inspect

import pytest
import torch

from kexue_train.model import (
    RoFormerV2Config,
    RoFormerV2ForMaskedLM,
    RoFormerV2ForNextSentencePrediction,
    RoFormerV2ForPreTraining,
    RoFormerV2Model,
)
from kexue_train.model.config import ModelConfig
from kexue_train.model.hf_folder import build_hf_config

MODELS = [RoFormerV2ForPreTraining, RoFormerV2ForMaskedLM, RoFormerV2ForNextSentencePrediction]


@pytest.fixture
def saved(make_model, tmp_path):
    """A tiny pretraining model and the folder it is saved in."""
    model = make_model()
    model.save_pretrained(tmp_path)
    return model, tmp_path


def test_save_and_load_gives_the_same_model(saved, tokens):
    model, folder = saved
    loaded, info = RoFormerV2ForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    before, after = model(tokens(2, 9)), loaded.eval()(tokens(2, 9))
    assert torch.equal(before.prediction_logits, after.prediction_logits)
    assert torch.equal(before.seq_relationship_logits, after.seq_relationship_logits)


def test_tied_weights_stay_tied(saved):
    for model in (saved[0], RoFormerV2ForMaskedLM.from_pretrained(saved[1])):
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert "cls.predictions.decoder.weight" not in dict(model.named_parameters())


def test_a_pretraining_folder_loads_as_every_other_model(saved, tokens):
    (model, folder), input_ids = saved, tokens(2, 9)
    expected = model(input_ids)
    masked, masked_info = RoFormerV2ForMaskedLM.from_pretrained(folder, output_loading_info=True)
    pairs, pairs_info = RoFormerV2ForNextSentencePrediction.from_pretrained(folder, output_loading_info=True)
    encoder = RoFormerV2Model.from_pretrained(folder)
    assert torch.equal(masked.eval()(input_ids).logits, expected.prediction_logits)
    assert torch.equal(pairs.eval()(input_ids).logits, expected.seq_relationship_logits)
    assert torch.equal(encoder.eval()(input_ids).last_hidden_state, model.roformer(input_ids).last_hidden_state)
    assert not any(info[key] for info in (masked_info, pairs_info) for key in ("missing_keys", "unexpected_keys"))


def test_a_missing_head_is_initialised_by_the_same_rule(make_model, tmp_path):
    masked = RoFormerV2ForMaskedLM(make_model().config)
    masked.save_pretrained(tmp_path)
    model, info = RoFormerV2ForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    names = ["cls.next_sentence.classifier.weight", "cls.next_sentence.dense.weight"]
    assert sorted(info["missing_keys"]) == names
    assert model.cls.next_sentence.dense.weight.std().item() == pytest.approx((3 * 48) ** -0.5, rel=0.1)
    assert torch.equal(model.get_input_embeddings().weight, masked.get_input_embeddings().weight)


def test_configuration_survives_the_folder(tmp_path):
    RoFormerV2Config(vocab_size=321, layer_norm_eps=1e-9, rotary_base=500.0).save_pretrained(tmp_path)
    loaded = RoFormerV2Config.from_pretrained(tmp_path)
    assert (loaded.vocab_size, loaded.layer_norm_eps, loaded.rotary_base) == (321, 1e-9, 500.0)
    assert (loaded.model_type, loaded.pad_token_id, loaded.tie_word_embeddings) == ("roformer_v2", 0, True)


def test_loss_is_the_mean_over_labelled_words_plus_the_mean_over_pairs(make_model, tokens):
    model, labels = make_model(), tokens(2, 9, seed=1)
    labels[:, ::2] = -100
    relation = torch.tensor([1, 0])
    output = model(tokens(2, 9), labels=labels, next_sentence_label=relation)
    log_words, log_relation = output.prediction_logits.log_softmax(-1), output.seq_relationship_logits.log_softmax(-1)
    words = [-log_words[b, s, labels[b, s]] for b in range(2) for s in range(1, 9, 2)]
    pairs = [-log_relation[b, relation[b]] for b in range(2)]
    torch.testing.assert_close(output.loss, torch.stack(words).mean() + torch.stack(pairs).mean())
    alone = model(tokens(2, 9), labels=labels).loss
    torch.testing.assert_close(alone, torch.stack(words).mean())


def test_single_headed_losses_are_the_parts(make_model, tokens, saved):
    labels, relation = tokens(2, 9, seed=1), torch.tensor([1, 0])
    both = saved[0](tokens(2, 9), labels=labels, next_sentence_label=relation).loss
    masked = RoFormerV2ForMaskedLM.from_pretrained(saved[1]).eval()(tokens(2, 9), labels=labels).loss
    pairs = RoFormerV2ForNextSentencePrediction.from_pretrained(saved[1]).eval()(tokens(2, 9), labels=relation).loss
    torch.testing.assert_close(both, masked + pairs)


def test_no_labels_no_loss(make_model, tokens):
    assert make_model()(tokens(1, 4)).loss is None


@pytest.mark.parametrize("model_class", MODELS)
def test_arguments_have_the_usual_names_and_order(model_class):
    # Trainers keep only the columns that forward names, and examples pass the first three by position.
    names = list(inspect.signature(model_class.forward).parameters)
    assert names[:5] == ["self", "input_ids", "attention_mask", "token_type_ids", "position_ids"]
    assert {"labels", "inputs_embeds", "sequence_ids"} < set(names)


def test_by_position_and_by_name_are_the_same(make_model, tokens):
    model, mask, segments = make_model(), torch.tensor([[1] * 6 + [0] * 3]), torch.tensor([[0] * 4 + [1] * 5])
    by_position = model(tokens(1, 9), mask, segments).prediction_logits
    by_name = model(tokens(1, 9), attention_mask=mask, token_type_ids=segments).prediction_logits
    assert torch.equal(by_position, by_name)
    assert not torch.equal(by_name, model(tokens(1, 9)).prediction_logits)


def test_hidden_states_are_the_embeddings_and_every_layer(make_model, tokens):
    model = make_model()
    output = model.roformer(tokens(2, 9), output_hidden_states=True)
    assert len(output.hidden_states) == 4
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert torch.equal(output.hidden_states[0], model.roformer.embeddings(tokens(2, 9), torch.zeros(2, 9).long()))
    assert model.roformer(tokens(2, 9)).hidden_states is None


@pytest.mark.parametrize("model_class", MODELS)
def test_a_tuple_on_request(model_class, tiny_config, tokens):
    model = model_class(tiny_config).eval()
    as_tuple, as_output = model(tokens(1, 5), return_dict=False), model(tokens(1, 5))
    assert isinstance(as_tuple, tuple)
    assert all(torch.equal(a, b) for a, b in zip(as_tuple, as_output.to_tuple(), strict=True))


def test_word_table_can_be_resized(make_model, tokens):
    model = make_model()
    model.resize_token_embeddings(120, mean_resizing=False)
    assert model(tokens(1, 5)).prediction_logits.shape == (1, 5, 120)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize(("pieces", "rows"), [(5, 128), (128, 128), (129, 256), (8192, 8192), (21128, 21248)])
def test_the_word_table_is_rounded_up_to_a_multiple_of_128(pieces, rows):
    assert build_hf_config(ModelConfig(), pieces).vocab_size == rows
