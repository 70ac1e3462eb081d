"""Explanations of a model's answers: completeness, heads, drawing, and what is refused."""

from __future__ import annotations

import io
import json
from html.parser import HTMLParser

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from kexue_train.cli.app import app
from kexue_train.downstream.evaluate.explain import explain_answer
from kexue_train.downstream.load_model import load_masked_lm, load_next_sentence_model
from kexue_train.downstream.results.explanation import (
    Explanation,
    TokenShare,
    as_html,
    as_html_page,
    as_terminal_text,
    strongest_words,
)
from kexue_train.foundation.errors import ConfigError, EvaluationError
from tests.downstream.evaluate.zero_shot.tiny_models import export_roformer, make_bert, random_roformer


@pytest.fixture(scope="module")
def roformer(tmp_path_factory):
    return export_roformer(tmp_path_factory.mktemp("models") / "roformer")


@pytest.fixture(scope="module", params=["roformer", "bert"])
def model(request, tmp_path_factory, roformer):
    return roformer if request.param == "roformer" else make_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.mark.parametrize("baseline", ["mask", "zero"])
def test_shares_sum_to_the_way_from_the_baseline(model, baseline):
    found = explain_answer(model, "a b c", "d e", baseline=baseline)
    assert (found.head, found.baseline) == ("nsp", baseline)
    way = found.at_input - found.at_baseline
    assert abs(sum(piece.value for piece in found.pieces) - way) == pytest.approx(found.gap, abs=1e-9)
    assert found.gap <= 0.01 * abs(way)


def test_the_ends_of_the_path_are_the_models_own_log_odds(model):
    found = explain_answer(model, "a b c", "d e", answer="is random")
    loaded = load_next_sentence_model(model)
    inputs = loaded.tokenizer("a b c", "d e", return_tensors="pt")
    masked = {**inputs, "input_ids": inputs["input_ids"].clone()}
    own = (inputs["input_ids"] != loaded.tokenizer.cls_token_id) & (
        inputs["input_ids"] != loaded.tokenizer.sep_token_id
    )
    masked["input_ids"][own] = loaded.tokenizer.mask_token_id
    with torch.no_grad():
        ends = [loaded.model(**each).logits[0] for each in (inputs, masked)]
    assert found.at_input == pytest.approx(float(ends[0][1] - ends[0][0]), abs=1e-5)
    assert found.at_baseline == pytest.approx(float(ends[1][1] - ends[1][0]), abs=1e-5)
    assert found.probability == pytest.approx(float(ends[0].softmax(0)[1]), abs=1e-6)


def test_the_two_answers_of_a_pair_have_opposite_shares(model):
    one, other = (explain_answer(model, "a b c", "d e", answer=answer) for answer in ("is next", "is random"))
    assert [piece.value for piece in one.pieces] == pytest.approx([-piece.value for piece in other.pieces], abs=1e-6)


def test_a_masked_word_is_the_models_first_guess(model):
    found = explain_answer(model, "a [MASK] c")
    loaded = load_masked_lm(model)
    inputs = loaded.tokenizer("a [MASK] c", return_tensors="pt")
    with torch.no_grad():
        probabilities = loaded.model(**inputs).logits[0, 2, : len(loaded.tokenizer)].double().softmax(-1)
    assert found.head == "mlm"
    assert found.answer == loaded.tokenizer.convert_ids_to_tokens(int(probabilities.argmax()))
    p = float(probabilities.max())
    assert found.at_input == pytest.approx(float(torch.logit(torch.tensor(p, dtype=torch.float64))), abs=1e-4)
    assert [(piece.text, piece.is_special) for piece in found.pieces[1:4]] == [
        ("a", False),
        (" [MASK]", True),
        (" c", False),
    ]


def test_special_tokens_stay_and_get_nothing(model):
    found = explain_answer(model, "a b", "c")
    special = [piece for piece in found.pieces if piece.is_special]
    assert [piece.text for piece in special] == ["[CLS] ", " [SEP] ", " [SEP] "]
    assert [piece.value for piece in special] == [0, 0, 0]


def test_the_pieces_are_the_text_itself(roformer):
    text = "Ab  c! 东京 d"
    found = explain_answer(roformer, f"{text} [MASK]")
    assert "".join(piece.text for piece in found.pieces[1:-1]) == f"{text} [MASK]"


def test_a_classifier_is_asked_for_its_labels(tmp_path):
    model = make_bert(
        tmp_path / "bert", "BertForSequenceClassification", num_labels=3, id2label={0: "no", 1: "so", 2: "yes"}
    )
    found = explain_answer(model, "a b c", answer="so")
    assert (found.head, found.answer) == ("classification", "so")
    assert found.gap <= 0.01 * abs(found.at_input - found.at_baseline)
    with pytest.raises(EvaluationError, match="no answer 'maybe'; give no, so, yes"):
        explain_answer(model, "a b c", answer="maybe")


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("a b",), {}, "give the other one: --pair TEXT"),
        (("a [MASK] [MASK]",), {}, "[MASK] 2 times"),
        (("a b",), {"head": "mlm"}, "[MASK] 0 times"),
        (("[MASK]",), {}, "the text has only special tokens"),
        (("", ""), {}, "the text has only special tokens"),
        (("a [MASK]",), {"answer": "quark"}, "no answer 'quark'; give a token of its vocabulary"),
        (("a " * 600, "b"), {}, "604 tokens with [CLS] and [SEP], the model takes 512; shorten the text"),
        (("a",), {"head": "classification"}, "weights are missing"),
    ],
)
def test_what_cannot_be_asked_is_refused(roformer, arguments, options, words):
    with pytest.raises(EvaluationError) as caught:
        explain_answer(roformer, *arguments, **options)
    assert words in str(caught.value)


def test_damaged_weights_are_said_to_be_damaged(tmp_path):
    model = random_roformer()
    model.cls.next_sentence.dense.weight.data[0, 0] = float("nan")
    with pytest.raises(EvaluationError, match="its answer is NaN"):
        explain_answer(export_roformer(tmp_path / "roformer", model), "a", "b")


FOUND = Explanation(
    head="classification",
    answer="<b>",
    probability=0.75,
    baseline="mask",
    at_input=1.1,
    at_baseline=0.1,
    gap=0.001,
    steps=16,
    pieces=[
        TokenShare(text="[CLS] ", value=0, is_special=True),
        TokenShare(text="a<", value=1.5, is_special=False),
        TokenShare(text="  &b", value=-0.5, is_special=False),
        TokenShare(text=" [SEP] ", value=0, is_special=True),
    ],
)


class Words(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.titles = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag != "meta":
            self.open.append(tag)
        self.titles += [value for name, value in attrs if name == "title"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_html_shows_the_text_escaped_with_every_share():
    words = Words(as_html(FOUND))
    assert words.open == []
    assert "[CLS] a<  &b [SEP]" in words.text
    assert words.titles == ["+1.5000", "-0.5000"]
    assert "'<b>', probability 75.0%" in words.text
    assert "<b>" not in as_html_page(FOUND)


def test_html_needs_no_network_and_the_strongest_word_has_the_full_colour():
    page = as_html_page(FOUND)
    assert Words(page).open == []
    assert "http" not in page
    assert "src=" not in page
    assert "rgba(217,95,2,0.75)" in page
    assert "rgba(31,120,180,0.25)" in page


def test_the_terminal_shows_the_text_and_the_strongest_words():
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(as_terminal_text(FOUND))
    assert console.export_text().strip() == "[CLS] a<  &b [SEP]"
    assert strongest_words(FOUND) == [("a<", "+1.500"), ("&b", "-0.500")]


def test_shares_of_nothing_are_drawn_too():
    nothing = FOUND.model_copy(update={"pieces": [TokenShare(text="a", value=0, is_special=False)]})
    assert "0.00)" in as_html(nothing)
    assert as_terminal_text(nothing).plain == "a"


def run(*arguments):
    return CliRunner().invoke(app, ["evaluate", "explain", *map(str, arguments)])


def test_the_command_shows_and_writes(roformer, tmp_path):
    ended = run(roformer, "a b c", "--pair", "d e", "-o", tmp_path / "new" / "a.json")
    assert ended.exit_code == 0, ended.output
    written = Explanation.model_validate_json((tmp_path / "new" / "a.json").read_text())
    assert "[CLS] a b c [SEP] d e [SEP]" in ended.stdout
    assert f"{written.answer!r}, probability {written.probability:.1%}" in ended.stdout
    assert run(roformer, "a [MASK]", "-o", tmp_path / "a.html").exit_code == 0
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>")
    assert json.loads((tmp_path / "new" / "a.json").read_text())["steps"] >= 16


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--head", "nps"], "'classification', 'nsp' or 'mlm', did you mean 'nsp'?"),
        (["--baseline", "mean"], "'mask' or 'zero'"),
        (["-o", "a.png"], "ends in .html or .json"),
    ],
)
def test_wrong_options_are_refused(roformer, options, words):
    ended = run(roformer, "a", *options)
    assert isinstance(ended.exception, ConfigError)
    assert words in str(ended.exception)
