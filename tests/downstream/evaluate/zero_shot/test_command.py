"""``kexue evaluate nsp-zero-shot`` and the sentences of ``kexue evaluate mlm``."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from kexue_train.cli.app import app
from kexue_train.foundation.errors import ConfigError
from tests.downstream.evaluate.zero_shot.tiny_models import make_bert

MINE = """
good:
  title: is it good?
  test: good.json
  labels: {yes_: good, no_: bad}
  text: "{sentence}"
  prompt: it is {label}
  pet: {text: "{sentence} is [MASK]", labels: {yes_: g, no_: b}}
  published: {Someone: 90.5}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("command")
    make_bert(root / "bert")
    (root / "my.yaml").write_text(MINE)
    lines = [{"sentence": f"number {i}", "label": ("yes_", "no_")[i % 2]} for i in range(10)]
    (root / "good.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def run(folder, *arguments):
    return CliRunner().invoke(app, ["evaluate", "nsp-zero-shot", str(folder / "bert"), str(folder), *arguments])


def test_results_are_written_and_shown_beside_published_ones(folder, tmp_path):
    ended = run(folder, "--task", str(folder / "my.yaml"), "-o", str(tmp_path / "new" / "zero.json"))
    assert ended.exit_code == 0, ended.output
    written = json.loads((tmp_path / "new" / "zero.json").read_text())
    assert (written["schema_version"], written["tasks"][0]["published"]) == (1, {"Someone": 0.905})
    [row] = [line.split() for line in ended.stdout.splitlines() if line.startswith("good")]
    nsp, pet = (f"{100 * score['accuracy']:.1f}" for score in written["tasks"][0]["scores"])
    assert row == ["good", "10", "50.0", "90.5", nsp, pet]


def test_a_failed_task_is_shown_and_ends_with_1(folder, tmp_path):
    ended = run(folder, "--task", "tnews", "--task", str(folder / "my.yaml"), "-o", str(tmp_path / "zero.json"))
    assert ended.exit_code == 1
    assert "tnews: no score:" in ended.stdout
    assert [task["task"] for task in json.loads((tmp_path / "zero.json").read_text())["tasks"]] == ["tnews", "good"]


def test_one_method_alone(folder, tmp_path):
    ended = run(folder, "--task", str(folder / "my.yaml"), "--method", "pet", "-o", str(tmp_path / "zero.json"))
    assert ended.exit_code == 0
    [task] = json.loads((tmp_path / "zero.json").read_text())["tasks"]
    assert [score["method"] for score in task["scores"]] == ["pet"]


def test_an_unknown_method_is_refused(folder, tmp_path):
    ended = run(folder, "--method", "gpt", "-o", str(tmp_path / "zero.json"))
    assert isinstance(ended.exception, ConfigError)
    assert "'nsp', 'pet' or 'both'" in str(ended.exception)


def test_sentences_get_their_pseudo_perplexity(samples, exported, tmp_path):
    (tmp_path / "sentences.txt").write_text("word1 word2\nword3\n")
    command = ["evaluate", "mlm", str(exported), str(samples), "-o", str(tmp_path / "mlm.json")]
    ended = CliRunner().invoke(app, [*command, "--sentences", str(tmp_path / "sentences.txt")])
    assert ended.exit_code == 0, ended.output
    found = json.loads((tmp_path / "mlm.json").read_text())["sentences"]
    assert [(entry["sentence"], entry["tokens"]) for entry in found] == [("word1 word2", 2), ("word3", 1)]
    assert "pseudo-perplexity " in ended.stdout
