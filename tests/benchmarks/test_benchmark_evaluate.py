"""The benchmark of evaluation: that all contestants compute the same pairs."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from benchmarks.evaluate import BARE, OURS, USUAL, app
from tests.downstream.evaluate.zero_shot.tiny_models import export_roformer


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    export_roformer(folder / "hf")
    (folder / "my.yaml").write_text(
        "mine: {title: t, test: t.json, labels: {a: good, b: bad, c: so so}, text: '{sentence}', prompt: 'is {label}'}"
    )
    lines = [{"sentence": "abc " * number, "label": "a"} for number in range(1, 9)]
    (folder / "t.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["zero-shot", str(folder / "hf"), str(folder), "--task", str(folder / "my.yaml"), "--records", "6"]
    ended = CliRunner().invoke(app, [*command, "--rounds", "2", "--json", str(folder / "out.json")])
    assert ended.exit_code == 0, ended.output
    return json.loads((folder / "out.json").read_text())


def test_every_contestant_is_measured_in_every_round(result):
    assert {name: len(times) for name, times in result["seconds"].items()} == {OURS: 2, BARE: 2, USUAL: 2}


def test_tokens_are_those_of_all_pairs_without_padding(result):
    texts = sum(3 * number for number in range(1, 7))  # letters
    prompts = [len("isgood"), len("isbad"), len("issoso")]
    assert result["pairs"] == 18
    assert result["tokens"] == 3 * texts + 6 * sum(prompts) + 18 * 3


def test_whitening_is_measured_and_checked(tmp_path):
    command = ["whitening", "--vectors", "9000", "--size", "8", "--json", str(tmp_path / "out.json")]
    ended = CliRunner().invoke(app, command)
    assert ended.exit_code == 0, ended.output
    figures = json.loads((tmp_path / "out.json").read_text())
    assert (figures["vectors"], figures["size"]) == (9000, 8)
    assert figures["error"] < 1e-9
