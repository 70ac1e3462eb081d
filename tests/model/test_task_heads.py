"""The models for tasks of the user's: logits and losses against the formulas, and how they start from a folder."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads

from kexue_train.model import (
    RoFormerV2ForMaskedLM,
    RoFormerV2ForMultipleChoice,
    RoFormerV2ForQuestionAnswering,
    RoFormerV2ForSequenceClassification,
    RoFormerV2ForTokenClassification,
)
from kexue_train.optim import Tiger, build_param_groups

TASK_MODELS = {
    RoFormerV2ForSequenceClassification: "classifier",
    RoFormerV2ForTokenClassification: "classifier",
    RoFormerV2ForQuestionAnswering: "qa_outputs",
    RoFormerV2ForMultipleChoice: "classifier",
}


@pytest.fixture
def make_task_model(tiny_config):
    """A model with a head whose bias is not zero; evaluation mode."""

    def make(model_class, **options):
        torch.manual_seed(0)
        config = type(tiny_config)(**{**tiny_config.to_dict(), "transformers_version": "", **options})
        model = model_class(config).eval()
        with torch.no_grad():
            getattr(model, TASK_MODELS[model_class]).bias.normal_()
        return model

    return make


def linear(head, state):
    return state @ head.weight.T + head.bias


def test_a_row_is_classified_by_its_first_token(make_task_model, tokens):
    model, ids = make_task_model(RoFormerV2ForSequenceClassification, num_labels=5), tokens(3, 9)
    logits = model(ids).logits
    assert logits.shape == (3, 5)
    torch.testing.assert_close(logits, linear(model.classifier, model.roformer(ids).last_hidden_state[:, 0]))


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize(
    ("kind", "num_labels", "labels", "expected"),
    [
        ("single_label_classification", 5, torch.tensor([4, 0, 2]), F.cross_entropy),
        (
            "multi_label_classification",
            5,
            torch.tensor([[0, 1, 1, 0, 1], [0] * 5, [1] * 5]).float(),
            lambda x, y: -(y * x.sigmoid().log() + (1 - y) * (-x).sigmoid().log()).mean(),
        ),
        ("regression", 1, torch.tensor([0.5, -2.0, 3.0]), lambda x, y: (x[:, 0] - y).square().mean()),
    ],
)
def test_the_loss_follows_the_kind_of_labels(make_task_model, tokens, kind, num_labels, labels, expected, declared):
    options = {"num_labels": num_labels} | ({"problem_type": kind} if declared else {})
    model = make_task_model(RoFormerV2ForSequenceClassification, **options)
    output = model(tokens(3, 9), labels=labels)
    torch.testing.assert_close(output.loss, expected(output.logits, labels))


def test_several_numbers_per_row_are_a_regression_if_declared(make_task_model, tokens):
    model = make_task_model(RoFormerV2ForSequenceClassification, num_labels=3, problem_type="regression")
    labels = torch.randn(2, 3)
    output = model(tokens(2, 9), labels=labels)
    torch.testing.assert_close(output.loss, (output.logits - labels).square().mean())


def test_every_token_is_classified(make_task_model, tokens):
    model, ids, labels = make_task_model(RoFormerV2ForTokenClassification, num_labels=4), tokens(2, 9), tokens(2, 9) % 4
    labels[:, 5:] = -100
    output = model(ids, labels=labels)
    torch.testing.assert_close(output.logits, linear(model.classifier, model.roformer(ids).last_hidden_state))
    losses = [-output.logits[b, s].log_softmax(-1)[labels[b, s]] for b in range(2) for s in range(5)]
    torch.testing.assert_close(output.loss, torch.stack(losses).mean())


def test_an_answer_has_a_start_and_an_end(make_task_model, tokens):
    model, ids = make_task_model(RoFormerV2ForQuestionAnswering), tokens(2, 9)
    starts, ends = torch.tensor([1, 4]), torch.tensor([3, 20])  # the last one lies outside of its row
    output = model(ids, start_positions=starts, end_positions=ends)
    both = linear(model.qa_outputs, model.roformer(ids).last_hidden_state)
    torch.testing.assert_close(output.start_logits, both[..., 0])
    torch.testing.assert_close(output.end_logits, both[..., 1])
    expected = (F.cross_entropy(both[..., 0], starts) + F.cross_entropy(both[:1, :, 1], ends[:1])) / 2
    torch.testing.assert_close(output.loss, expected)


def test_each_choice_is_scored_as_a_row_of_its_own(make_task_model, tokens):
    model, ids = make_task_model(RoFormerV2ForMultipleChoice), tokens(2, 3, 9)
    segments, mask = tokens(2, 3, 9, seed=1) % 2, torch.ones(2, 3, 9, dtype=torch.long)
    mask[:, 1, 6:] = 0
    labels = torch.tensor([2, 0])
    output = model(ids, attention_mask=mask, token_type_ids=segments, labels=labels)
    for row in range(2):
        for choice in range(3):
            one = (tensor[row, choice][None] for tensor in (ids, mask, segments))
            state = model.roformer(*one).last_hidden_state[0, 0]
            torch.testing.assert_close(output.logits[row, choice], linear(model.classifier, state)[0])
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, labels))


@pytest.mark.parametrize("model_class", TASK_MODELS)
def test_a_pretrained_folder_starts_a_task_with_a_fresh_head(make_model, tokens, tmp_path, model_class):
    make_model().save_pretrained(tmp_path)
    torch.manual_seed(0)
    model, info = model_class.from_pretrained(tmp_path, num_labels=3, output_loading_info=True)
    head = TASK_MODELS[model_class]
    assert set(info["missing_keys"]) == {f"{head}.weight", f"{head}.bias"}
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert not getattr(model, head).bias.any()
    # By the rule for all kernels, 1 / (N · fan-in), cut at two sigma.
    assert 0.4 * (3 * 48) ** -0.5 < getattr(model, head).weight.std().item() < 1.4 * (3 * 48) ** -0.5
    hidden = model.roformer.eval()(tokens(1, 9)).last_hidden_state
    assert torch.equal(hidden, make_model().roformer(tokens(1, 9)).last_hidden_state)


@pytest.mark.parametrize("model_class", TASK_MODELS)
def test_save_and_load_gives_the_same_task_model(make_task_model, tokens, tmp_path, model_class):
    model = make_task_model(model_class)
    ids = tokens(2, 3, 9) if model_class is RoFormerV2ForMultipleChoice else tokens(2, 9)
    model.save_pretrained(tmp_path)
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    before, after = model(ids, return_dict=False), loaded.eval()(ids, return_dict=False)
    torch.testing.assert_close(before, after)  # the product with one row depends on where it lies in memory


@pytest.mark.parametrize("model_class", [*TASK_MODELS, RoFormerV2ForMaskedLM])
def test_hidden_states_attentions_and_tuples_on_request(tiny_config, tokens, model_class):
    ids = tokens(2, 3, 9) if model_class is RoFormerV2ForMultipleChoice else tokens(2, 9)
    rows = ids.flatten(0, -2).shape[0]
    model = model_class(tiny_config).eval()
    assert {"hidden_states", "attentions", "loss"} & model(ids).keys() == set()
    model.set_attn_implementation("eager")
    output = model(ids, output_hidden_states=True, output_attentions=True)
    assert [state.shape for state in output.hidden_states] == [(rows, 9, 48)] * 4
    assert [probabilities.shape for probabilities in output.attentions] == [(rows, 4, 9, 9)] * 3
    for probabilities in output.attentions:
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(rows, 4, 9))
    model.config.return_dict = False
    assert isinstance(model(ids), tuple)


def test_probabilities_are_those_that_attention_uses(make_model, tokens):
    model, mask = make_model(attention="eager"), torch.tensor([[1] * 6 + [0] * 3])
    inputs = {"input_ids": tokens(1, 9), "attention_mask": mask}
    output = model.roformer(**inputs, output_attentions=True, output_hidden_states=True)
    assert not output.attentions[0][..., 6:].any()
    attention = model.roformer.encoder.layer[0].attention
    values = attention.self.value(output.hidden_states[0]).view(1, 9, 4, 12).transpose(1, 2)
    mixed = (output.attentions[0] @ values).transpose(1, 2).flatten(2)
    attended = attention.output(mixed)
    branch = model.roformer.encoder.layer[0].norm(output.hidden_states[0] + attended)
    feed_forward = model.roformer.encoder.layer[0]
    expected = feed_forward.norm(branch + feed_forward.output(feed_forward.intermediate(branch)))
    torch.testing.assert_close(output.hidden_states[1], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_class", TASK_MODELS)
def test_tiger_takes_a_head_with_its_bias(tiny_config, model_class):
    model = model_class(tiny_config)
    groups = build_param_groups(model)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    Tiger(groups, lr=1e-3, beta=0.9, weight_decay=0.0, accumulation_steps=1)
