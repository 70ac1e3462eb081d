"""``kexue finetune task``, and an explanation of what it saved."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from kexue_train.cli.app import app
from kexue_train.foundation.errors import ConfigError
from tests.downstream.finetune.tasks.tiny_tasks import make_encoder, make_files, text_with_a_label

MINE = """
mine:
  title: x or y?
  kind: classification
  train: mine/train.jsonl
  dev: mine/dev.jsonl
lost:
  title: nowhere
  kind: choice
  train: nowhere.jsonl
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("command")
    make_encoder(root / "model")
    make_files(root / "mine", text_with_a_label, train=120, dev=40)
    (root / "my.yaml").write_text(MINE)
    return root


@pytest.fixture(scope="module")
def ended(folder):
    command = ["finetune", "task", str(folder / "model"), str(folder), "--task", str(folder / "my.yaml")]
    options = ["--seeds", "2", "--epochs", "6", "--batch-size", "16", "--lr", "0.05", "--no-random-encoder"]
    files = ["--out", str(folder / "new" / "out.json"), "--save", str(folder / "trained")]
    return CliRunner().invoke(app, [*command, *options, *files])


def test_results_are_written_and_shown_and_a_failure_ends_with_1(ended, folder):
    assert ended.exit_code == 1, ended.output
    written = json.loads((folder / "new" / "out.json").read_text())
    assert [task["task"] for task in written["tasks"]] == ["mine", "lost"]
    [row] = [line.split() for line in ended.stdout.splitlines() if line.startswith("mine ")]
    assert row[:6] == ["mine", "120", "40", "dev", "accuracy", "50.0"]
    assert row[-3:] == ["100.0", "±", "0.0"]
    assert "lost: no score: " in ended.stdout


def test_the_saved_model_is_opened_by_transformers_and_names_its_labels(ended, folder):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder / "trained" / "mine", trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder / "trained" / "mine")
    answers = model(**tokenizer(["x a b c", "y a b c"], return_tensors="pt")).logits.argmax(-1)
    assert [model.config.id2label[int(answer)] for answer in answers] == ["yes", "no"]


def test_its_answer_is_explained_by_the_letter_that_tells_it(ended, folder):
    from kexue_train.downstream.evaluate.explain import explain_answer

    found = explain_answer(folder / "trained" / "mine", "x a b c d e")
    assert (found.head, found.answer) == ("classification", "yes")
    strongest = max(found.pieces, key=lambda piece: piece.value)
    assert strongest.text.strip() == "x"
    assert found.gap <= 0.01 * abs(found.at_input - found.at_baseline)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--task", "trek"], "no task 'trek'"),
        ([], "no task is chosen"),
        (["--task", "trec", "--gradient-keep", "0"], "--gradient-keep=0"),
        (["--task", "trec", "--flood-level", "-1"], "--flood-level=-1"),
    ],
)
def test_wrong_options_are_refused(folder, options, words):
    ended = CliRunner().invoke(
        app, ["finetune", "task", str(folder / "model"), str(folder), "-o", "out.json", *options]
    )
    assert isinstance(ended.exception, ConfigError)
    assert words in str(ended.exception)
