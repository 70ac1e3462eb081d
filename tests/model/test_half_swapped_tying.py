"""Half-swapped tying: word logits S[x] · E, where S swaps the halves of x. Source: kexue.fm/archives/9698 and 9736."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads
from transformers import AutoModelForMaskedLM, AutoModelForPreTraining

from kexue_train.foundation.errors import ConfigError
from kexue_train.model import RoFormerV2Config, RoFormerV2ForMaskedLM, RoFormerV2ForPreTraining
from kexue_train.model.config import ModelConfig
from kexue_train.model.hf_folder import build_hf_config, write_hf_folder
from kexue_train.model.modeling_roformer_v2 import set_residual_scale
from tests.train.tiny_training import make_objective

WIDTH = 48
SWAPPED = {"tied_output": "half_swapped"}


def expected_logits(model, input_ids):
    """[..., V] in float64: for every word the product with its row, second half first."""
    hidden = model.roformer(input_ids).last_hidden_state.detach().double().numpy()
    table = model.get_input_embeddings().weight.detach().double().numpy()
    half = WIDTH // 2
    rows = np.stack([np.concatenate((row[half:], row[:half])) for row in table])
    return np.einsum("bse,ve->bsv", hidden, rows)


@pytest.mark.parametrize("model_class", [RoFormerV2ForPreTraining, RoFormerV2ForMaskedLM])
def test_logits_are_products_with_swapped_rows(make_model, tokens, model_class):
    source, input_ids = make_model(), tokens(2, 9)
    model = model_class(make_model(**SWAPPED).config).eval()
    model.load_state_dict(source.state_dict(), strict=False)
    expected = expected_logits(model, input_ids)
    logits = model(input_ids)[0].detach().numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)  # products of 48 numbers of size 3, fp32
    assert np.abs(source(input_ids).prediction_logits.detach().numpy() - expected).max() > 1


def test_only_the_word_logits_change(make_model, tokens):
    plain, swapped = make_model()(tokens(2, 9)), make_model(**SWAPPED)(tokens(2, 9))
    assert torch.equal(plain.seq_relationship_logits, swapped.seq_relationship_logits)
    assert not torch.equal(plain.prediction_logits, swapped.prediction_logits)


def test_no_weight_is_added_and_the_table_stays_tied(make_model):
    plain, swapped = make_model(), make_model(**SWAPPED)
    assert plain.state_dict().keys() == swapped.state_dict().keys()
    assert swapped.get_output_embeddings().weight is swapped.get_input_embeddings().weight


def test_training_has_the_losses_and_gradients_of_the_logits(make_model, tokens):
    """The objective projects predicted slots alone, in chunks; here against all logits and their cross-entropy."""
    input_ids, labels, slots, gradients = tokens(2, 9), tokens(4, seed=1), torch.tensor([1, 4, 9, 17]), []
    batch = {
        "input_ids": input_ids,
        "sequence_ids": torch.ones_like(input_ids),
        "sequence_starts": torch.tensor([0, 9, 18], dtype=torch.int32),
        "position_ids": torch.arange(9).expand(2, 9),
        "token_type_ids": torch.zeros_like(input_ids),
        "prediction_slots": slots,
        "prediction_labels": labels,
        "pair_slots": torch.tensor([0]),
        "pair_labels": torch.tensor([-100]),
    }
    for is_objective in (True, False):
        model = make_model(**SWAPPED).double()
        if is_objective:
            objective = make_objective(model, expected=(4.0, 1.0))
            loss, _ = objective.eval()(batch)
        else:
            loss = F.cross_entropy(model(input_ids).prediction_logits.flatten(0, 1)[slots], labels)
        loss.backward()
        weights = [p for name, p in model.named_parameters() if "next_sentence" not in name]
        gradients.append([loss.detach().double(), *(weight.grad for weight in weights)])
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)  # attention may be fp32


def first_loss(tied_output: str, *, width: int, layers: int, words: int, alpha: float) -> float:
    """Of random targets, without segments (the row of a segment is no part of the formula)."""
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 64}
    config = RoFormerV2Config(vocab_size=words, **sizes, tied_output=tied_output)
    model = RoFormerV2ForMaskedLM(config).eval()
    set_residual_scale(model, alpha)
    with torch.no_grad():
        model.roformer.embeddings.token_type_embeddings.weight.zero_()
        input_ids, labels = torch.randint(1, words, (2, 8, 64))
        return float(model(input_ids, labels=labels).loss)


@pytest.mark.parametrize(("width", "layers"), [(256, 4), (512, 8), (1024, 4)])
def test_swapping_cures_the_first_loss_of_a_tied_head(width, layers):
    """Published for a network that begins as the identity: log(e^(dσ) + V - 1) plain, log V otherwise.

    σ = 1/√(N d). The other logits are of variance dσ² = 1/N, which the formula neglects: 1/(2N) more at most. Means of
    512 tokens whose own target has such a logit: 3 · 0.5/√512.
    """
    words, own_logit = 2000, math.sqrt(width / layers)
    sizes = {"width": width, "layers": layers, "words": words, "alpha": 0.0}
    tolerance = 1 / (2 * layers) + 0.07
    plain, swapped = first_loss("plain", **sizes), first_loss("half_swapped", **sizes)
    assert plain == pytest.approx(math.log(math.exp(own_logit) + words - 1), abs=tolerance)
    assert swapped == pytest.approx(math.log(words), abs=tolerance)


def test_with_its_layers_a_fresh_network_begins_at_log_v():
    sizes = {"width": 512, "layers": 2, "words": 2000, "alpha": 1.0}
    assert first_loss("plain", **sizes) > math.log(2000) + 1
    assert first_loss("half_swapped", **sizes) == pytest.approx(math.log(2000), abs=0.3)  # logits of variance 1/2


def test_every_word_gets_a_gradient_from_every_prediction(make_model, tokens):
    model = make_model(**SWAPPED)
    model(tokens(1, 4), labels=tokens(1, 4, seed=1)).loss.backward()
    assert bool(model.get_input_embeddings().weight.grad.any(1).all())


@pytest.mark.parametrize("model_class", [RoFormerV2ForPreTraining, RoFormerV2ForMaskedLM])
def test_a_saved_model_loads_with_its_swap(make_model, tokens, tmp_path, model_class):
    model = model_class(make_model(**SWAPPED).config).eval()
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path).eval()
    assert loaded.config.tied_output == "half_swapped"
    assert torch.equal(loaded(tokens(2, 9))[0], model(tokens(2, 9))[0])


def test_an_exported_folder_swaps_with_its_own_code(make_model, tokens, tmp_path):
    model = make_model(**SWAPPED)
    write_hf_folder(model, tmp_path, None)
    for auto, name in ((AutoModelForPreTraining, "prediction_logits"), (AutoModelForMaskedLM, "logits")):
        loaded = auto.from_pretrained(tmp_path, trust_remote_code=True).eval()
        assert not type(loaded).__module__.startswith("kexue_train")
        assert torch.equal(getattr(loaded(tokens(2, 9)), name), model(tokens(2, 9)).prediction_logits)


def test_folders_from_before_the_option_are_plain(make_model, tokens, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["tied_output"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    loaded = RoFormerV2ForPreTraining.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(tokens(2, 9)).prediction_logits, model(tokens(2, 9)).prediction_logits)


def test_an_untied_head_has_nothing_to_swap(make_model, tmp_path):
    with pytest.raises(ValueError, match=r"tied_output='half_swapped' with tie_word_embeddings=False: .*tie the two"):
        RoFormerV2Config(**SWAPPED, tie_word_embeddings=False)
    make_model(**SWAPPED).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has nothing to swap"):
        RoFormerV2ForPreTraining.from_pretrained(tmp_path, tie_word_embeddings=False)


def test_other_values_are_refused_with_the_allowed_ones():
    with pytest.raises(ValueError, match="tied_output='swapped': allowed are plain, half_swapped"):
        RoFormerV2Config(tied_output="swapped")
    with pytest.raises(ConfigError, match=r"run\.yaml: tied_output=.*'plain' or 'half_swapped'"):
        ModelConfig.parse({"tied_output": "swapped"}, where="run.yaml")


def test_the_section_of_a_run_becomes_the_configuration():
    assert build_hf_config(ModelConfig(tied_output="half_swapped"), 50).tied_output == "half_swapped"
    assert build_hf_config(ModelConfig(), 50).tied_output == RoFormerV2Config().tied_output == "plain"
