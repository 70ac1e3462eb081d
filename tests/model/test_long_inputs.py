"""Options for inputs longer than those of training: windowed attention and the log-n scale."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kexue_train.model import RoFormerV2ForMaskedLM
from kexue_train.model import modeling_roformer_v2 as modeling
from tests.reference import roformer_v2_numpy as reference

WINDOW = 8


@pytest.fixture(params=["sdpa", "eager"])
def attention(request):
    return request.param


def expected_row(model, ids, *, visible, scale=None):
    """Hidden states in float64 of one row with the [S, S] matrix written out; ``scale`` [S] multiplies the scores."""
    weights = {name.removeprefix("roformer."): tensor.double().numpy() for name, tensor in model.state_dict().items()}
    scale = np.ones(len(ids)) if scale is None else scale
    x = weights["embeddings.word_embeddings.weight"][ids] + weights["embeddings.token_type_embeddings.weight"][0]
    x = reference.rms_norm(x)
    size = model.config.hidden_size // model.config.num_attention_heads
    for index in range(model.config.num_hidden_layers):
        layer = f"encoder.layer.{index}"
        q, k, v = (x @ weights[f"{layer}.attention.self.{name}.weight"].T for name in ("query", "key", "value"))
        heads = []
        for head in range(model.config.num_attention_heads):
            part, positions = slice(head * size, (head + 1) * size), np.arange(len(ids))
            scores = reference.rotate(q[:, part], positions) @ reference.rotate(k[:, part], positions).T
            scores = scores * scale[:, None] / math.sqrt(size)
            heads.append(reference.softmax(np.where(visible, scores, -np.inf)) @ v[:, part])
        x = reference.rms_norm(x + np.concatenate(heads, -1) @ weights[f"{layer}.attention.output.dense.weight"].T)
        inner = np.maximum(x @ weights[f"{layer}.intermediate.dense.weight"].T, 0.0)
        x = reference.rms_norm(x + inner @ weights[f"{layer}.output.dense.weight"].T)
    return x


def near(slots, window=WINDOW):
    place = np.arange(slots)
    return np.abs(place[:, None] - place[None]) <= window // 2


def assert_rows(hidden, expected):
    np.testing.assert_allclose(hidden.detach().numpy(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("slots", [9, 16, 17, 43])
def test_a_long_row_sees_a_centred_window(make_model, tokens, attention, slots):
    model, input_ids = make_model(attention=attention, attention_window=WINDOW), tokens(1, slots)
    hidden = model.roformer(input_ids).last_hidden_state[0]
    assert_rows(hidden, expected_row(model, input_ids[0].numpy(), visible=near(slots)))


@pytest.mark.parametrize("slots", [1, 5, WINDOW])
def test_up_to_the_window_nothing_changes(make_model, tokens, attention, slots):
    plain, windowed = (make_model(attention=attention, attention_window=window) for window in (None, WINDOW))
    assert torch.equal(windowed(tokens(2, slots)).prediction_logits, plain(tokens(2, slots)).prediction_logits)


@pytest.mark.parametrize("window", [60, 86, 1000])
def test_a_wide_window_is_no_window(make_model, tokens, attention, window):
    # 86 // 2 is the largest distance in 44 tokens, and 60 is more tokens than there are.
    plain, windowed = (make_model(attention=attention, attention_window=w) for w in (None, window))
    assert torch.equal(windowed(tokens(2, 44)).prediction_logits, plain(tokens(2, 44)).prediction_logits)


def test_a_far_token_is_out_of_sight_of_every_layer_together(make_model, tokens):
    # Three layers carry a change 3 * 4 tokens far and not one further.
    model, input_ids = make_model(attention_window=WINDOW), tokens(1, 60)
    changed = input_ids.clone()
    changed[0, 20] = (changed[0, 20] + 1) % 97
    before, after = (model.roformer(ids).last_hidden_state[0] for ids in (input_ids, changed))
    moved = (before != after).any(-1)
    assert moved[8:33].all()
    assert not moved[:8].any()
    assert not moved[33:].any()


def test_padding_and_neighbours_do_not_decide_who_is_windowed(make_model, tokens, attention):
    # Row 0 is short enough to be seen whole, row 1 is not; both as if alone. Padding left or right.
    model, input_ids = make_model(attention=attention, attention_window=WINDOW), tokens(2, 30)
    right = (torch.arange(30)[None] < torch.tensor([[7], [26]])).long()
    for mask in (right, right.flip(1)):
        hidden = model.roformer(input_ids, attention_mask=mask).last_hidden_state
        for row, real in enumerate(mask.bool()):
            assert_rows(hidden[row, real], model.roformer(input_ids[row : row + 1, real]).last_hidden_state[0].detach())


def test_packed_sequences_are_as_if_alone(make_model, tokens, attention):
    model, input_ids = make_model(attention=attention, attention_window=WINDOW, log_n_scale=64), tokens(1, 40)
    lengths = [6, 20, 3, 11]
    sequence_ids = torch.repeat_interleave(torch.arange(1, 5), torch.tensor(lengths))[None]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = model.roformer(input_ids, sequence_ids=sequence_ids, position_ids=positions).last_hidden_state[0]
    alone = [model.roformer(ids[None]).last_hidden_state[0] for ids in input_ids[0].split(lengths)]
    assert_rows(packed, torch.cat(alone).detach().numpy())


@pytest.mark.parametrize("slots", [3, 16, 17, 40])
def test_scores_grow_with_the_logarithm_of_what_is_seen(make_model, tokens, attention, slots):
    model, input_ids = make_model(attention=attention, log_n_scale=32), tokens(1, slots)
    scale = np.full(slots, math.log(max(slots, 16)) / math.log(32))
    expected = expected_row(model, input_ids[0].numpy(), visible=np.ones((slots, slots), bool), scale=scale)
    assert_rows(model.roformer(input_ids).last_hidden_state[0], expected)


def test_a_window_decides_how_many_are_seen(make_model, tokens, attention):
    window, slots = 40, 70
    model = make_model(attention=attention, attention_window=window, log_n_scale=32)
    input_ids, visible = tokens(1, slots), near(slots, window)
    scale = np.log(np.maximum(visible.sum(-1), 16)) / math.log(32)
    assert len(set(scale)) > 10
    expected = expected_row(model, input_ids[0].numpy(), visible=visible, scale=scale)
    assert_rows(model.roformer(input_ids).last_hidden_state[0], expected)


def test_at_the_reference_length_the_scale_is_1(make_model, tokens, attention):
    plain, scaled = (make_model(attention=attention, log_n_scale=scale) for scale in (None, 512))
    ids = tokens(1, 512)
    assert torch.equal(scaled(ids).prediction_logits, plain(ids).prediction_logits)
    assert not torch.equal(scaled(ids[:, :200]).prediction_logits, plain(ids[:, :200]).prediction_logits)


def test_the_scale_keeps_attention_as_sharp_at_any_length():
    """The entropy of softmax(c·s) over n normal scores grows like log n; with the scale it grows much less."""

    def entropy(n, scale):
        log_p = (torch.randn(64, n, generator=torch.Generator().manual_seed(n)) * 4 * scale).log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1).mean().item()

    lengths = (512, 8192)
    plain = [entropy(n, 1.0) for n in lengths]
    scaled = [entropy(n, math.log(n) / math.log(512)) for n in lengths]
    assert scaled[0] == plain[0]
    assert scaled[1] - scaled[0] < (plain[1] - plain[0]) / 2


def test_work_grows_with_the_length_times_the_window(make_model, tokens):
    def attention_work(slots, window):
        model = make_model(attention="eager", attention_window=window, num_hidden_layers=1)
        with torch.no_grad(), FlopCounterMode(display=False) as counted:
            model.roformer(tokens(1, slots))
        return counted.get_flop_counts()["Global"][torch.ops.aten.bmm]  # the two products of attention, and no other

    assert attention_work(1024, 32) / attention_work(512, 32) == pytest.approx(2, rel=0.1)
    assert attention_work(1024, None) / attention_work(512, None) == pytest.approx(4, rel=0.1)
    assert attention_work(1024, 32) < attention_work(1024, None) / 8


def test_gradients_flow_through_the_window(make_model, tokens):
    # The same rows, windowed by blocks and by a mask written out.
    model = make_model(attention_window=WINDOW).double()
    ids = tokens(1, 30)
    model.roformer(ids).last_hidden_state.square().sum().backward()
    by_blocks = [p.grad.clone() for p in model.roformer.parameters()]
    model.zero_grad()
    embedded = model.roformer.embeddings(ids, torch.zeros_like(ids))
    model.config.attention_window = None
    mask = torch.from_numpy(near(30))[None, None]
    rotary = modeling.rotary_table(torch.arange(30)[None], 12, 10000.0)
    for layer in model.roformer.encoder.layer:
        embedded = layer(embedded, rotary, modeling.Visibility(mask=mask))
    embedded.square().sum().backward()
    for blocks, written_out in zip(by_blocks, (p.grad for p in model.roformer.parameters()), strict=True):
        torch.testing.assert_close(blocks, written_out)


def test_the_options_are_kept_and_can_be_given_when_loading(make_model, tokens, tmp_path):
    make_model().save_pretrained(tmp_path)
    loaded = RoFormerV2ForMaskedLM.from_pretrained(tmp_path, attention_window=WINDOW, log_n_scale=512)
    assert (loaded.config.attention_window, loaded.config.log_n_scale) == (WINDOW, 512)
    direct = make_model(attention_window=WINDOW, log_n_scale=512)
    assert torch.equal(loaded.eval()(tokens(1, 30)).logits, direct(tokens(1, 30)).prediction_logits)


def test_a_window_stills_the_warning(make_model, tokens, caplog):
    logger = logging.getLogger("kexue_train.model.modeling_roformer_v2")
    logger.addHandler(caplog.handler)
    try:
        make_model(attention_window=21, max_position_embeddings=21)(tokens(1, 30))
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records
