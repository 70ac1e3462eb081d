"""What transformers' common tests need to know about RoFormerV2; ``run.py`` runs this file.

The classes come from an exported folder, as a user gets them, and are known to the auto classes.
"""

from __future__ import annotations

import tempfile
import unittest
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto import modeling_auto
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin, ids_tensor, random_attention_mask

from kexue_train.model import RoFormerV2Config, RoFormerV2ForPreTraining
from kexue_train.model.hf_folder import write_hf_folder

_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
# The tables by which the common tests tell what labels a class takes.
_KINDS = {
    "AutoModel": modeling_auto.MODEL_MAPPING_NAMES,
    "AutoModelForPreTraining": modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES,
    "AutoModelForMaskedLM": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "AutoModelForNextSentencePrediction": modeling_auto.MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES,
    "AutoModelForSequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForTokenClassification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForQuestionAnswering": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "AutoModelForMultipleChoice": modeling_auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
}


def _exported_classes() -> tuple[type, list[type]]:
    """The configuration and the models of an exported folder, registered with their auto classes."""
    with tempfile.TemporaryDirectory() as folder:
        config = RoFormerV2Config(vocab_size=99, **_SIZES)
        write_hf_folder(RoFormerV2ForPreTraining(config), Path(folder), None)
        auto_map = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True).auto_map
        classes = {auto: get_class_from_dynamic_module(name, folder) for auto, name in auto_map.items()}
    config_class = classes.pop("AutoConfig")
    transformers.AutoConfig.register(config_class.model_type, config_class)
    assert classes.keys() == _KINDS.keys()
    for auto, model_class in classes.items():
        getattr(transformers, auto).register(config_class, model_class)
        _KINDS[auto][config_class.model_type] = model_class.__name__
    return config_class, list(classes.values())


CONFIG, MODELS = _exported_classes()


class RoFormerV2Tester:
    """Sizes, a configuration and inputs, under the names that the common tests use."""

    batch_size, seq_length, num_choices, is_training = 13, 7, 4, True
    num_hidden_layers, hidden_size, num_attention_heads = 2, 32, 4

    def get_config(self) -> Any:
        return CONFIG(vocab_size=99, type_vocab_size=16, **_SIZES)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        shape = [self.batch_size, self.seq_length]
        words, segments = ids_tensor(shape, 99), ids_tensor(shape, 16)
        return self.get_config(), {
            "input_ids": words,
            "token_type_ids": segments,
            "attention_mask": random_attention_mask(shape),
        }


class RoFormerV2ModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = tuple(MODELS)
    test_can_init_all_missing_weights_before_2023 = True  # not left out for want of a year in the file

    def setUp(self) -> None:
        self.model_tester = RoFormerV2Tester()
        self.config_tester = ConfigTester(self, config_class=CONFIG, hidden_size=24)

    def test_config(self) -> None:
        self.config_tester.run_common_tests()

    def _prepare_for_class(self, inputs_dict: Any, model_class: type, return_labels: bool = False) -> Any:
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels and model_class.__name__ == "RoFormerV2ForPreTraining":
            rows, slots = inputs["input_ids"].shape
            inputs["labels"] = torch.zeros((rows, slots), dtype=torch.long)
            inputs["next_sentence_label"] = torch.zeros(rows, dtype=torch.long)
        return inputs
