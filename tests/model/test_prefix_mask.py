"""``prefix_lm``: who sees whom, against a mask written token by token; and nothing leaks, to the bit."""

from __future__ import annotations

import pytest
import torch

from kexue_train.model import RoFormerV2Config, RoFormerV2ForMaskedLM
from kexue_train.model.modeling_roformer_v2 import prefix_mask_of
from tests.model.test_packed_rows import pack

SEGMENTS = (5, 4)
"""Tokens of the first and the second segment of a sequence, special ones among them."""


def may_see(query: int, key: int, types: list[int], sequences: list[int], real: list[int]) -> bool:
    """The rule in words: oneself; else a real token of the same sequence, of the first segment or not after oneself."""
    if query == key:
        return True
    if sequences[query] != sequences[key] or not real[key]:
        return False
    return types[key] == 0 or (types[query] > 0 and key < query)


@pytest.fixture
def model(make_model):
    return make_model(prefix_lm=True)


@pytest.fixture
def pairs(tokens):
    """Tokens and segments of two sequences of equal form, both [2, 9]."""
    return tokens(2, sum(SEGMENTS)), torch.tensor([[0] * SEGMENTS[0] + [1] * SEGMENTS[1]] * 2)


def test_the_mask_is_the_rule_token_by_token():
    random = torch.Generator().manual_seed(0)
    for _ in range(50):
        types = torch.randint(0, 2, (3, 11), generator=random)
        sequence_ids = torch.randint(0, 3, (3, 11), generator=random).sort(1).values
        attention_mask = torch.randint(0, 2, (3, 11), generator=random)
        packed, padded = prefix_mask_of(types, sequence_ids), prefix_mask_of(types, None, attention_mask)
        for row in range(3):
            kind, number, real = types[row].tolist(), sequence_ids[row].tolist(), attention_mask[row].tolist()
            for query in range(11):
                for key in range(11):
                    assert packed[row, 0, query, key] == may_see(query, key, kind, number, [1] * 11)
                    assert padded[row, 0, query, key] == may_see(query, key, kind, [0] * 11, real)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_later_token_changes_no_logit_before_it_by_a_bit(make_model, pairs, attention):
    model, (ids, types) = make_model(attention=attention, prefix_lm=True), pairs
    before = model(ids, token_type_ids=types).prediction_logits
    for slot in range(SEGMENTS[0], sum(SEGMENTS)):
        changed = ids.clone()
        changed[:, slot] = ids[:, slot] % 96 + 1
        after = model(changed, token_type_ids=types).prediction_logits
        assert torch.equal(before[:, :slot], after[:, :slot])
        assert not torch.isclose(before[:, slot:], after[:, slot:]).all(-1).any()


def test_the_first_segment_reaches_everything(model, pairs):
    ids, types = pairs
    changed = ids.clone()
    changed[:, SEGMENTS[0] - 1] = ids[:, SEGMENTS[0] - 1] % 96 + 1
    before, after = (model(x, token_type_ids=types).prediction_logits for x in (ids, changed))
    assert not torch.isclose(before, after).all(-1).any()


def test_no_gradient_flows_from_left_to_right(model, pairs):
    ids, types = pairs
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    slot = SEGMENTS[0] + 1
    model(inputs_embeds=embedded, token_type_ids=types).prediction_logits[:, slot].sum().backward()
    assert torch.equal(embedded.grad.abs().sum(-1)[0] > 0, torch.arange(sum(SEGMENTS)) <= slot)


def test_the_states_of_the_first_segment_are_those_of_it_alone(model, pairs):
    ids, types = pairs
    first = slice(0, SEGMENTS[0])
    alone = model.roformer(ids[:, first]).last_hidden_state
    together = model.roformer(ids, token_type_ids=types).last_hidden_state[:, first]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    other = torch.cat([ids[:, first], ids[:, SEGMENTS[0] :] % 96 + 1], 1)
    assert torch.equal(model.roformer(other, token_type_ids=types).last_hidden_state[:, first], together)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_packed_sequence_has_the_outputs_it_has_alone(make_model, tokens, attention):
    model, segments = make_model(attention=attention, prefix_lm=True), ((4, 7), (5, 2), (4, 0))
    sequence_ids, positions = pack(tuple(map(sum, segments)), 26)
    flat = [kind for first, second in segments for kind in [0] * first + [1] * second]
    types, ids = torch.tensor([flat + [0] * (26 - len(flat))]), tokens(1, 26)
    together = model(ids, token_type_ids=types, sequence_ids=sequence_ids, position_ids=positions).prediction_logits
    for number in (1, 2, 3):
        place = sequence_ids[0] == number
        alone = model(ids[:, place], token_type_ids=types[:, place]).prediction_logits
        torch.testing.assert_close(together[:, place], alone, atol=1e-5, rtol=1e-5)
    other = torch.where(sequence_ids == 2, ids % 96 + 1, ids)
    after = model(other, token_type_ids=types, sequence_ids=sequence_ids, position_ids=positions).prediction_logits
    assert torch.equal(together[sequence_ids != 2], after[sequence_ids != 2])


def test_padding_changes_nothing_and_is_a_number(model, pairs):
    ids, types = pairs
    alone = model(ids, token_type_ids=types).prediction_logits
    padded, mask = (torch.nn.functional.pad(x, (0, 3)) for x in (ids, torch.ones_like(ids)))
    together = model(padded, mask, torch.nn.functional.pad(types, (0, 3))).prediction_logits
    torch.testing.assert_close(together[:, : ids.shape[1]], alone, atol=1e-5, rtol=1e-5)
    all_second = model(padded, mask, torch.nn.functional.pad(torch.ones_like(ids), (0, 3))).prediction_logits
    assert torch.isfinite(together).all()
    assert torch.isfinite(all_second).all()


def test_without_a_second_segment_and_without_the_option_nothing_changes(make_model, pairs):
    ids, types = pairs
    plain, prefix = make_model(), make_model(prefix_lm=True)
    assert torch.equal(plain(ids).prediction_logits, prefix(ids).prediction_logits)
    after_a_change = ids.clone()
    after_a_change[:, -1] = ids[:, -1] % 96 + 1
    before, after = (plain(x, token_type_ids=types).prediction_logits[:, 0] for x in (ids, after_a_change))
    assert not torch.equal(before, after)


def test_the_option_is_saved_and_loaded(model, pairs, tmp_path):
    ids, types = pairs
    model.save_pretrained(tmp_path)
    loaded = RoFormerV2ForMaskedLM.from_pretrained(tmp_path).eval()
    assert loaded.config.prefix_lm is True
    assert torch.equal(loaded(ids, token_type_ids=types).logits, model(ids, token_type_ids=types).prediction_logits)


def test_kernels_and_options_that_know_no_segments_are_refused(make_model, tokens):
    for option in ({"attention_window": 8}, {"log_n_scale": 8}):
        with pytest.raises(ValueError, match=f"prefix_lm=True with {next(iter(option))}=8"):
            RoFormerV2Config(prefix_lm=True, **option)
    with pytest.raises(ValueError, match="it needs two segments"):
        RoFormerV2Config(prefix_lm=True, type_vocab_size=1)
    with pytest.raises(ValueError, match="give True or False"):
        RoFormerV2Config(prefix_lm="yes")
    model = make_model(prefix_lm=True)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="takes no mask, which prefix_lm=True needs; use 'sdpa' or 'eager'"):
        model(tokens(1, 5))
