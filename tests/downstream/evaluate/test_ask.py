"""``kexue ask``: the checkpoints of a run answer beside each other, as each would alone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from kexue_train.downstream import ask as module
from kexue_train.downstream.ask import ask, find_checkpoints
from kexue_train.downstream.evaluate.masked_words import complete_sentences
from kexue_train.foundation.errors import EvaluationError
from tests.cases.command import kexue
from tests.downstream.evaluate.tiny_artifacts import export_model, tiny_model

SENTENCES = ["word3 word4 word5", "word9 word1", "word3 word4 word6", "word7 word8 word2 word1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in progress with three checkpoints, one half written and one hidden."""
    root = tmp_path_factory.mktemp("runs") / "mine"
    folder = root / "pretrain" / "checkpoints"
    for seed, step in enumerate((20, 100, 1000)):
        export_model(tiny_model(seed), folder / f"step-{step:08d}")
    (folder / "step-00002000").mkdir()
    (folder / ".step-00003000.partial").mkdir()
    (folder / "latest").write_text("step-00001000\n")
    return root


def test_the_oldest_and_the_newest_are_asked_or_those_of_the_steps(run: Path) -> None:
    folder = run / "pretrain" / "checkpoints"
    ends = {"step 20": folder / "step-00000020", "step 1,000": folder / "step-00001000"}
    for given in (run, run / "pretrain", folder):
        assert find_checkpoints(given) == ends
    assert list(find_checkpoints(run, [1000, 100])) == ["step 100", "step 1,000"]
    assert find_checkpoints(folder / "step-00000100") == {"step-00000100": folder / "step-00000100"}


def test_each_column_is_what_the_checkpoint_says_alone(run: Path) -> None:
    text, checkpoints = "word3 [MASK] word9 [MASK]", find_checkpoints(run, [20, 100, 1000])
    [table] = ask(checkpoints, [text], 3)
    assert (table.caption, table.header) == (text, ["", "step 20", "step 100", "step 1,000"])
    for column, path in enumerate(checkpoints.values(), 1):
        [found] = complete_sentences(path, [text], 3)
        guesses = [guess for mask in found["masks"] for guess in mask]
        assert [row[column].split() for row in table.rows] == [
            [guess["token"], f"{guess['probability']:.1%}"] for guess in guesses
        ]


def test_sentences_are_ordered_by_the_newest(run: Path) -> None:
    checkpoints = find_checkpoints(run)
    [table] = ask(checkpoints, SENTENCES, 2)
    cosines = [_cosines(path) for path in checkpoints.values()]
    best = np.argsort(-cosines[-1])[:2]
    assert [row[0] for row in table.rows] == [SENTENCES[1 + index] for index in best]
    for row, index in zip(table.rows, best, strict=True):
        for shown, found in zip(row[1:], cosines, strict=True):
            value, place = re.fullmatch(r"(-?[\d.]+)  \((\d)\.\)", shown).groups()
            assert float(value) == pytest.approx(found[index], abs=6e-4)
            assert int(place) == 1 + (found > found[index]).sum()


@torch.inference_mode()
def _cosines(path: Path) -> np.ndarray:
    """By transformers alone: means over all tokens."""
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path, trust_remote_code=True)
    states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in SENTENCES]
    vectors = torch.stack([of_text.mean(0) for of_text in states])
    return torch.nn.functional.cosine_similarity(vectors[:1], vectors[1:]).numpy()


def test_what_cannot_be_asked_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no checkpoint of step 21; there are those of steps 20, 100, 1,000"):
        find_checkpoints(run, [21])
    with pytest.raises(EvaluationError, match="no checkpoint yet"):
        find_checkpoints(tmp_path)
    with pytest.raises(EvaluationError, match="is one model"):
        find_checkpoints(run / "pretrain" / "checkpoints" / "step-00000020", [20])
    with pytest.raises(EvaluationError, match=r"nothing to ask: write \[MASK\]"):
        ask(find_checkpoints(run), ["word1"])


def test_a_checkpoint_that_goes_while_it_is_read_is_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    going = tmp_path / "step-00000020"
    shutil.copytree(run / "pretrain" / "checkpoints" / going.name, going)

    def read(path: Path, *arguments: object) -> object:
        shutil.rmtree(path)
        return complete_sentences(path, *arguments)

    monkeypatch.setattr(module, "complete_sentences", read)
    with pytest.raises(EvaluationError, match="was removed while it was read, as newer ones came; ask again"):
        ask({"step 20": going}, ["word1 [MASK]"])


def test_the_command_shows_both(run: Path, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("\n".join(SENTENCES[1:]) + "\n")
    words = ("ask", run, "word3 [MASK] word9", SENTENCES[0], "--sentences", "more.txt", "-n", "2")
    shown = kexue(tmp_path, *words)
    assert shown.code == 0, shown.err
    assert "word3 [MASK] word9" in shown.out
    assert f"most like '{SENTENCES[0]}'" in shown.out
    assert shown.out.count("step 1,000") == 2
    told = json.loads(kexue(tmp_path, *words, "--json").out)
    assert [len(table["rows"]) for table in told] == [2, 2]
    refused = kexue(tmp_path, "ask", "nowhere", "a [MASK]")
    assert refused.code == 2
    assert "nowhere: no checkpoint yet" in refused.err
