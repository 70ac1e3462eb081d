"""Inputs that cannot be meant are refused by name; odd ones that can be meant give finite numbers."""

from __future__ import annotations

import json
import logging
import math
import re

import pytest
import torch
from transformers import BertConfig

from kexue_train.foundation.errors import ConfigError
from kexue_train.model import (
    RoFormerV2Config,
    RoFormerV2ForMaskedLM,
    RoFormerV2ForMultipleChoice,
    RoFormerV2ForNextSentencePrediction,
    RoFormerV2ForPreTraining,
    RoFormerV2ForQuestionAnswering,
    RoFormerV2ForSequenceClassification,
    RoFormerV2ForTokenClassification,
    RoFormerV2Model,
)
from kexue_train.model.config import ModelConfig

IDS = torch.tensor([[5, 6, 7], [8, 9, 10]])


@pytest.mark.parametrize("name", ["input_ids", "token_type_ids", "position_ids", "sequence_ids"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8])
def test_numbers_of_another_dtype_are_refused(make_model, name, dtype):
    inputs = {"input_ids": IDS, name: torch.ones(2, 3, dtype=dtype)}
    with pytest.raises(TypeError, match=rf"{name} is of {dtype}; expected torch\.int64 or torch\.int32"):
        make_model()(**inputs)


def test_32_bit_numbers_do_as_well(make_model):
    inputs = {"input_ids": IDS, "token_type_ids": IDS % 2, "position_ids": IDS, "attention_mask": IDS > 6}
    narrow = {name: value.int() for name, value in inputs.items()}
    model = make_model()
    assert torch.equal(model(**inputs).prediction_logits, model(**narrow).prediction_logits)
    packed = {"input_ids": IDS, "sequence_ids": IDS // 7}
    narrow = {name: value.int() for name, value in packed.items()}
    assert torch.equal(model(**packed).prediction_logits, model(**narrow).prediction_logits)


@pytest.mark.parametrize("name", ["attention_mask", "token_type_ids", "position_ids", "sequence_ids"])
@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (2, 3, 1), (3,), (2, 1, 3, 3)])
def test_another_shape_is_refused(make_model, name, shape):
    message = f"{name} has shape {list(shape)}; expected [rows, slots] = [2, 3]"
    with pytest.raises(ValueError, match=re.escape(message)):
        make_model()(IDS, **{name: torch.ones(shape, dtype=torch.long)})


def test_one_row_of_positions_serves_all(make_model):
    model, places = make_model(), torch.tensor([[3, 1, 2]])
    one, both = (model(IDS, position_ids=positions).prediction_logits for positions in (places, places.expand(2, 3)))
    assert torch.equal(one, both)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (2, 0)])
def test_tokens_must_be_rows_of_slots(make_model, shape):
    with pytest.raises(ValueError, match=r"input_ids has shape .*expected .rows, slots. with at least one slot"):
        make_model()(torch.ones(shape, dtype=torch.long))


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 47), (2, 3, 48, 1)])
def test_embeddings_must_have_the_hidden_size(make_model, shape):
    with pytest.raises(ValueError, match=r"inputs_embeds has shape .*expected \[rows, slots, 48\]"):
        make_model()(inputs_embeds=torch.ones(shape))


def test_tokens_and_embeddings_at_once_are_refused(make_model):
    for inputs in ({}, {"input_ids": IDS, "inputs_embeds": torch.ones(2, 3, 48)}):
        with pytest.raises(ValueError, match="give input_ids or inputs_embeds, one of the two"):
            make_model()(**inputs)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("input_ids", 97, "goes from 0 to 97; allowed are numbers from 0 to 96"),
        ("input_ids", -1, "goes from -1 to 0; allowed are numbers from 0 to 96"),
        ("token_type_ids", 2, "goes from 0 to 2; allowed are numbers from 0 to 1"),
        ("attention_mask", -10000, "goes from -10000 to 0; allowed are numbers from 0 to 1"),
        ("position_ids", -1, "goes from -1 to 0; allowed are numbers from 0 upwards"),
        ("sequence_ids", -1, "goes from -1 to 0; allowed are numbers from 0 to 3"),
    ],
)
def test_a_number_out_of_range_is_refused(make_model, name, value, allowed):
    numbers = torch.zeros(2, 3, dtype=torch.long)
    numbers[1, 2] = value
    with pytest.raises(ValueError, match=f"{name} {allowed}"):
        make_model()(**{"input_ids": IDS, name: numbers})


def test_an_argument_of_another_name_is_refused(make_model):
    with pytest.raises(TypeError, match="unexpected keyword argument 'atention_mask'"):
        make_model()(IDS, atention_mask=torch.ones_like(IDS))


def test_a_longer_input_is_computed_and_warned_about_once(make_model, tokens):
    # One warning for a process, whatever the lengths: it is about the model, not about the row.
    model, messages = make_model(max_position_embeddings=23), []
    logger, handler = logging.getLogger("kexue_train.model.modeling_roformer_v2"), logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger.addHandler(handler)
    try:
        for slots in (23, 24, 40, 24):
            logits = model(tokens(1, slots)).prediction_logits
            assert torch.isfinite(logits).all()
        packed = torch.arange(1, 31).div(15, rounding_mode="floor")[None]
        model(tokens(1, 30), sequence_ids=packed)
    finally:
        logger.removeHandler(handler)
    assert len(messages) == 1
    assert "longer than max_position_embeddings=23" in messages[0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("options", [{}, {"attention_window": 2, "log_n_scale": 512}], ids=["plain", "long"])
def test_a_row_of_padding_alone_is_finite(make_model, attention, options):
    model, mask = make_model(attention=attention, **options), torch.tensor([[1, 1, 0], [0, 0, 0]])
    output = model(IDS, attention_mask=mask)
    assert torch.isfinite(output.prediction_logits).all()
    alone = model(IDS[:1], attention_mask=mask[:1]).prediction_logits
    torch.testing.assert_close(output.prediction_logits[:1], alone)
    model(IDS, attention_mask=mask, labels=torch.tensor([[1, 2, -100], [-100] * 3])).loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.roformer.parameters())


NOTHING = {
    RoFormerV2ForPreTraining: {"labels": (2, 3), "next_sentence_label": (2,)},
    RoFormerV2ForMaskedLM: {"labels": (2, 3)},
    RoFormerV2ForNextSentencePrediction: {"labels": (2,)},
    RoFormerV2ForSequenceClassification: {"labels": (2,)},
    RoFormerV2ForTokenClassification: {"labels": (2, 3)},
}


@pytest.mark.parametrize("model_class", NOTHING)
def test_without_any_label_the_loss_is_0_and_so_is_its_gradient(tiny_config, model_class):
    model = model_class(tiny_config)
    labels = {name: torch.full(shape, -100) for name, shape in NOTHING[model_class].items()}
    loss = model(IDS, **labels).loss
    assert loss.item() == 0
    loss.backward()
    assert all(not parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)


def test_answers_outside_of_the_row_count_for_nothing(tiny_config):
    model, beyond = RoFormerV2ForQuestionAnswering(tiny_config), torch.tensor([3, 9])
    assert model(IDS, start_positions=beyond, end_positions=beyond).loss.item() == 0


def test_a_choice_needs_choices(tiny_config):
    with pytest.raises(ValueError, match=r"input_ids of \[rows, choices, slots\]; given: \[2, 3\]"):
        RoFormerV2ForMultipleChoice(tiny_config)(IDS)


@pytest.mark.parametrize("model_class", [RoFormerV2Model, RoFormerV2ForMaskedLM, RoFormerV2ForSequenceClassification])
def test_the_configuration_of_another_model_is_refused(model_class):
    with pytest.raises(TypeError, match=f"{model_class.__name__} needs a RoFormerV2Config, not BertConfig"):
        model_class(BertConfig())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "bert"}, "model_type='bert'; .* reads 'roformer_v2'"),
        ({"model_type": "roformer", "use_bias": True}, "'roformer' version 1, with layer norms and biases"),
        ({"model_type": "roformer_v2", "use_bias": True}, "use_bias=True: this model has use_bias=False only"),
        ({"model_type": "roformer_v2", "embedding_size": 128}, "embedding_size=128: .* embedding_size=768 only"),
        ({"model_type": "roformer_v2", "rotary_value": True}, "rotary_value=True: .* rotary_value=False only"),
    ],
)
def test_the_folder_of_another_model_is_refused(tmp_path, values, message):
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    for load in (RoFormerV2Config.from_pretrained, RoFormerV2ForMaskedLM.from_pretrained):
        with pytest.raises(ValueError, match=message):
            load(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 6}, "no option 'num_layers'; did you mean 'num_hidden_layers'"),
        ({"foo": 1}, "no option 'foo'; it has vocab_size, hidden_size"),
        ({"hidden_act": "swish"}, "hidden_act='swish': give one of relu, gelu, silu"),
        ({"hidden_act": ["gelu", "swish"]}, r"hidden_act=\['gelu', 'swish'\]: give one of relu, .* or a list of two"),
        ({"hidden_act": ["gelu", "linear", "relu"]}, "a list of two for a gated layer"),
        ({"num_tokens": 12001}, "num_tokens=12001: give None or a whole number from 1 to vocab_size=12000"),
        ({"norm_placement": "middle"}, "norm_placement='middle': allowed are post, pre"),
        ({"init": "xavier"}, "init='xavier': allowed are depth_n, depth_2n, released, arithmetic, geometric, quad"),
        ({"attention_window": 0}, "attention_window=0: give None or a whole number of at least 2"),
        ({"log_n_scale": 1}, "log_n_scale=1: give None or a whole number of at least 2"),
        ({"log_n_scale": 51.2}, r"log_n_scale=51\.2: give None or a whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0: give a whole number of at least 1"),
        ({"vocab_size": "12000"}, "vocab_size='12000': give a whole number"),
        ({"hidden_size": 100, "num_attention_heads": 3}, "hidden_size=100 .*num_attention_heads=3 .*multiple of twice"),
    ],
)
def test_an_option_that_does_not_exist_or_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RoFormerV2Config(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_act": "swish"}, "hidden_act"),
        ({"hidden_act": ["gelu"]}, "hidden_act"),
        ({"norm_placement": "middle"}, "'post' or 'pre'"),
        ({"init": "xavier"}, "'depth_n', 'depth_2n', 'released', 'arithmetic', 'geometric' or 'quadratic'"),
        ({"attention_windw": 3}, "unknown key 'attention_windw'"),
    ],
)
def test_the_section_of_a_run_refuses_them_too(options, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig.parse(options, where="run.yaml")


def test_what_others_write_into_a_configuration_is_kept(tmp_path):
    RoFormerV2Config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"their_option": 3}), encoding="utf-8")
    assert RoFormerV2Config.from_pretrained(tmp_path).their_option == 3


def test_attention_probabilities_need_the_kernel_that_has_them(make_model):
    for model in (make_model(), make_model(attention="eager", attention_window=2)):
        with pytest.raises(ValueError, match=r"output_attentions with .*attn_implementation='eager'"):
            model(IDS, output_attentions=True)


def test_the_smallest_input_is_fine(make_model):
    assert math.isfinite(make_model()(torch.tensor([[4]])).prediction_logits.sum().item())
