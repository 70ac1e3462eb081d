"""The forward pass against two independent implementations and the published sizes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kexue_train.model import RoFormerV2Config, RoFormerV2ForMaskedLM, RoFormerV2ForPreTraining
from tests.reference import roformer_v2_numpy as reference

# fp32 against float64: values are of order one, some hundred roundings deep.
TOLERANCE = 1e-5


def reference_output(model, input_ids, *, segments=None, positions=None, visible=None):
    """The model's (hidden states, MLM logits, NSP logits) as NumPy float64 computes them."""
    state = {k: v.double().numpy() for k, v in model.state_dict().items()}
    encoder = {k.removeprefix("roformer."): v for k, v in state.items()}
    rows, slots = input_ids.shape
    segments = np.zeros((rows, slots), np.int64) if segments is None else segments.numpy()
    positions = np.tile(np.arange(slots), (rows, 1)) if positions is None else positions.numpy()
    visible = np.ones((rows, slots, slots), bool) if visible is None else visible.numpy()
    sizes = {"num_layers": model.config.num_hidden_layers, "num_heads": model.config.num_attention_heads}
    hidden = np.stack(
        [
            reference.encode_row(encoder, ids, segments=segment, positions=position, visible=seen, **sizes)
            for ids, segment, position, seen in zip(input_ids.numpy(), segments, positions, visible, strict=True)
        ]
    )
    heads = [state[f"cls.next_sentence.{name}.weight"] for name in ("dense", "classifier")]
    nsp = np.stack([reference.nsp_logits(*heads, row) for row in hidden])
    return hidden, reference.mlm_logits(encoder, hidden), nsp


def assert_equal(output, expected, *, where=...):
    hidden, logits, nsp = expected
    np.testing.assert_allclose(output.hidden_states[-1].detach().numpy()[where], hidden[where], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(
        output.prediction_logits.detach().numpy()[where], logits[where], atol=TOLERANCE, rtol=TOLERANCE
    )
    np.testing.assert_allclose(output.seq_relationship_logits.detach().numpy(), nsp, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_forward_equals_the_numpy_transcription(make_model, tokens, attention):
    model, input_ids = make_model(attention=attention), tokens(3, 29)
    segments = torch.from_numpy(np.random.default_rng(1).integers(0, 2, (3, 29)))
    output = model(input_ids, token_type_ids=segments, output_hidden_states=True)
    assert_equal(output, reference_output(model, input_ids, segments=segments))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padded_keys_are_invisible(make_model, tokens, attention):
    model, input_ids = make_model(attention=attention), tokens(3, 20)
    mask = torch.arange(20)[None] < torch.tensor([[20], [7], [1]])
    output = model(input_ids, attention_mask=mask.long(), output_hidden_states=True)
    expected = reference_output(model, input_ids, visible=mask[:, None, :].expand(3, 20, 20))
    assert_equal(output, expected, where=mask.numpy())


def test_custom_position_ids_are_used(make_model, tokens):
    model, input_ids = make_model(), tokens(2, 16)
    positions = torch.from_numpy(np.random.default_rng(2).integers(0, 300, (2, 16)))
    output = model(input_ids, position_ids=positions, output_hidden_states=True)
    assert_equal(output, reference_output(model, input_ids, positions=positions))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_attend_inside_a_sequence_only(make_model, tokens, attention):
    model, input_ids = make_model(attention=attention), tokens(2, 12)
    sequence_ids = torch.tensor([[1] * 5 + [2] * 4 + [0] * 3, [1] * 2 + [2] * 3 + [3] * 7])
    visible = sequence_ids[:, :, None] == sequence_ids[:, None, :]
    output = model(input_ids, sequence_ids=sequence_ids, output_hidden_states=True)
    assert_equal(output, reference_output(model, input_ids, visible=visible))


def test_full_length_rows_equal_the_transcription(make_model, tokens):
    model, input_ids = make_model(hidden_size=64, num_attention_heads=1), tokens(1, 512)
    assert_equal(model(input_ids, output_hidden_states=True), reference_output(model, input_ids))


def test_embeddings_can_be_given_in_place_of_tokens(make_model, tokens):
    model, input_ids = make_model(), tokens(2, 9)
    embedded = model.get_input_embeddings()(input_ids)
    by_tokens, by_embeddings = model(input_ids), model(inputs_embeds=embedded)
    assert torch.equal(by_tokens.prediction_logits, by_embeddings.prediction_logits)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_golden_numbers_of_another_implementation(repository, tmp_path, attention):
    # Made by JunnYu/RoFormer_pytorch with random weights; padded rows, both segments.
    golden = repository.parent / "shared" / "golden" / "roformer_v2"
    if not golden.is_dir():
        pytest.skip("needs ../shared/golden/roformer_v2 beside the repository")
    model = load_golden(golden, tmp_path, attention)
    expected = load_file(golden / "golden_a.io.safetensors")
    inputs = {name: expected[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.no_grad():
        output, hidden = model(**inputs), model.roformer(**inputs).last_hidden_state
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(hidden[real], expected["last_hidden_state"][real], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(output.logits[real], expected["logits"][real], atol=TOLERANCE, rtol=0)


def load_golden(golden: Path, folder: Path, attention: str) -> RoFormerV2ForMaskedLM:
    """Load the way a user loads a folder; every weight must find its place."""
    given = json.loads((golden / "golden_a.config.json").read_text(encoding="utf-8"))
    known = RoFormerV2Config().to_dict()
    RoFormerV2Config(**{k: given[k] for k in given if k in known and k != "model_type"}).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes((golden / "golden_a.weights.safetensors").read_bytes())
    model, info = RoFormerV2ForMaskedLM.from_pretrained(folder, attn_implementation=attention, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


@pytest.mark.parametrize(
    ("layers", "hidden", "heads", "parameters"),
    [(6, 384, 6, 15_225_600), (12, 768, 12, 94_152_192), (24, 1024, 16, 314_279_936)],
    ids=["small", "base", "large"],
)
def test_published_sizes_have_the_published_number_of_parameters(layers, hidden, heads, parameters):
    config = RoFormerV2Config(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * hidden
    )
    with torch.device("meta"):
        model = RoFormerV2ForMaskedLM(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert 12000 * hidden + 2 * hidden + layers * (4 * hidden**2 + 8 * hidden**2) == parameters


def test_nothing_is_a_bias_or_a_gain(tiny_config):
    state = RoFormerV2ForPreTraining(tiny_config).state_dict()
    assert not [name for name in state if name.rsplit(".", 1)[-1] in {"bias", "gamma", "beta"}]
    assert all(tensor.ndim == 2 for tensor in state.values())


def test_tokens_at_equal_positions_are_a_set(make_model, tokens):
    # Without differences of position nothing tells one order from another.
    model, input_ids = make_model(), tokens(1, 17)
    order = torch.from_numpy(np.random.default_rng(3).permutation(17))
    same_place = torch.full((1, 17), 5)
    straight = model(input_ids, position_ids=same_place).prediction_logits
    permuted = model(input_ids[:, order], position_ids=same_place).prediction_logits
    torch.testing.assert_close(permuted, straight[:, order], atol=TOLERANCE, rtol=0)


def test_a_shift_of_all_positions_changes_nothing(make_model, tokens):
    model, input_ids = make_model(), tokens(2, 17)
    straight = model(input_ids).prediction_logits
    shifted = model(input_ids, position_ids=torch.arange(17)[None] + 1000).prediction_logits
    torch.testing.assert_close(shifted, straight, atol=TOLERANCE, rtol=0)


def test_dropout_comes_before_the_norm_of_the_embeddings(make_model, tokens):
    model = make_model(hidden_dropout_prob=0.5).train()
    embedded = model.roformer.embeddings(tokens(2, 9), torch.zeros(2, 9, dtype=torch.long))
    assert (embedded == 0).any()
    torch.testing.assert_close(embedded.square().mean(-1), torch.ones(2, 9))


def test_the_masked_word_head_drops_its_input(make_model):
    head, hidden = make_model(hidden_dropout_prob=0.5).cls.predictions, torch.ones(4, 48)
    assert torch.equal(head(hidden), head(hidden))
    assert not torch.equal(head.train()(hidden), head(hidden))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("which", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_each_dropout_acts_in_training_only(make_model, tokens, which, attention):
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = make_model(attention=attention, **(rates | {which: 0.5}))
    calm = model(tokens(1, 9)).prediction_logits
    assert torch.equal(calm, model(tokens(1, 9)).prediction_logits)
    assert not torch.equal(calm, model.train()(tokens(1, 9)).prediction_logits)
    without = make_model(attention=attention, **rates)
    assert torch.equal(calm, without.train()(tokens(1, 9)).prediction_logits)


def test_another_activation_is_refused(tiny_config):
    tiny_config.hidden_act = "swish"
    with pytest.raises(ValueError, match="hidden_act='swish': give one of relu"):
        RoFormerV2ForMaskedLM(tiny_config)


def test_no_input_is_refused(make_model):
    with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
        make_model()()
