"""SimCSE: from files of any format to an encoder, on models of a few kilobytes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from typer.testing import CliRunner

from kexue_train.cli.app import app
from kexue_train.downstream.evaluate.sentence_vectors.encode_sentences import Sentences, encode_sentences
from kexue_train.downstream.finetune.sentence_vectors.raw_sentences import read_sentences
from kexue_train.downstream.finetune.sentence_vectors.train_on_sentences import train_on_sentences
from kexue_train.downstream.load_model import load_encoder
from kexue_train.downstream.results.files import read_result
from kexue_train.downstream.results.trained_vectors import VectorResults
from kexue_train.downstream.settings import VectorSettings
from kexue_train.foundation.errors import ConfigError, CorpusError, EvaluationError
from tests.downstream.evaluate.sentence_vectors.oracles import write_set
from tests.downstream.evaluate.zero_shot.tiny_models import make_bert

LETTERS = list("abcdefghijklmnop")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("bert"), "BertModel", initializer_range=0.1)


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("raw") / "sentences.txt"
    path.write_text("".join(" ".join(random.choice(LETTERS, 4)) + "\n" for _ in range(120)))
    return path


@pytest.fixture(scope="module")
def sts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs that are the more alike, the more letters they share; and a set without an order."""
    random, folder = np.random.default_rng(1), tmp_path_factory.mktemp("sts")
    records = []
    for _ in range(60):
        shared = int(random.integers(0, 5))
        first, other = random.choice(LETTERS, 4, replace=False), random.choice(list("qrstuvwx"), 4)
        second = [*first[:shared], *other[shared:]]
        records.append({"text_a": " ".join(first), "text_b": " ".join(second), "score": shared})
    write_set(folder / "pairs", records, "test.jsonl.gz")
    write_set(folder / "constant", [{"text_a": "a", "text_b": f"b {i}", "score": 1} for i in range(4)], "test.jsonl.gz")
    return folder


def settings(**values: Any) -> VectorSettings:
    fit = {"lr": 2e-2, "epochs": 2, "batch_size": 20} | values.pop("fit", {})
    return VectorSettings.parse({"loss": "simcse", "seeds": 1, "max_length": 16, "fit": fit, **values}, where="test")


def test_documents_of_every_format_become_different_sentences(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One is here. Two is here.\n\n  \nOne is here.\n")
    lines = [json.dumps({"text": "这是一。这是二！\n这是一。"}, ensure_ascii=False), '{"other": 1}', "{"]
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(lines))
    found = read_sentences(tmp_path)
    assert found.texts == ["One is here.", "Two is here.", "这是一。", "这是二！"]
    assert (found.found, found.repeated) == (6, 2)
    assert sum(found.rejected.values()) == 2
    fewer = read_sentences(tmp_path, 3).texts
    assert fewer == [text for text in found.texts if text in fewer]
    assert set(read_sentences(tmp_path, 2).texts) < set(fewer)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.txt", "\n \n", "holds 0 different sentences"),
        ("one.txt", "Same.\nSame.\n", "holds 1 different sentences"),
        ("keys.jsonl", '{"sentence": "a"}\n', "rejected records: .* with a key 'text'"),
    ],
)
def test_too_few_sentences_are_refused(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(EvaluationError, match=words):
        read_sentences(tmp_path / name)
    with pytest.raises(CorpusError):
        read_sentences(tmp_path / "nowhere.txt")


def mean_cosine(folder: Path, texts: list[str]) -> float:
    """Of different sentences."""
    loaded = load_encoder(folder)
    vectors = encode_sentences(loaded, Sentences.read(loaded.tokenizer, texts, 16), ["mean"])["mean"]
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = units @ units.T
    return float(cosines[~np.eye(len(cosines), dtype=bool)].mean())


def test_sentences_are_moved_apart_and_the_encoder_is_kept(
    bert: Path, sentences: Path, sts: Path, tmp_path: Path
) -> None:
    results = train_on_sentences(
        bert, sentences, settings(fit={"epochs": 4}), sts=sts, names=["pairs"], save=tmp_path / "encoder"
    )
    [result] = results.sets
    assert result.failures == []
    [run] = result.runs
    assert run.losses[-1] < 0.7 * run.losses[0]
    assert (run.best_epoch, run.dev_by_epoch) == (4, [])
    texts = sorted(set(sentences.read_text().split("\n")[:40]))
    assert mean_cosine(tmp_path / "encoder", texts) < mean_cosine(bert, texts) - 0.2
    again = train_on_sentences(bert, sentences, settings(fit={"epochs": 1}), sts=sts, names=["pairs"]).sets[0]
    assert again.before == result.before
    loaded = load_encoder(tmp_path / "encoder")
    assert loaded.model.config.architectures == ["BertModel"]


def test_a_seed_repeats_to_the_bit_and_another_differs(bert: Path, sentences: Path, sts: Path) -> None:
    chosen = settings(seeds=2, fit={"epochs": 1}, max_train=60)
    first, second = (train_on_sentences(bert, sentences, chosen, sts=sts, names=["pairs"]) for _ in range(2))
    assert first == second
    [result] = first.sets
    assert result.runs[0].losses != result.runs[1].losses
    assert result.records == {"train": 60, "test": 60}
    other = train_on_sentences(bert, sentences, settings(temperature=0.5, fit={"epochs": 1}, max_train=60))
    assert other.sets[0].runs[0].losses != result.runs[0].losses
    assert (first.temperature, other.temperature) == (0.05, 0.5)


def test_without_dropout_it_is_refused_unless_some_is_given(sentences: Path, tmp_path: Path) -> None:
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = make_bert(tmp_path / "bert", "BertModel", initializer_range=0.1, **none)
    with pytest.raises(EvaluationError, match=r"--loss simcse compares two passes .*--dropout 0\.1, or train it with"):
        train_on_sentences(model, sentences, settings())
    given = train_on_sentences(model, sentences, settings(fit={"epochs": 1, "dropout": 0.1}, max_train=40))
    assert given.sets[0].failures == []
    assert given.fit.dropout == 0.1


def test_a_language_that_the_model_does_not_know_is_refused(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "greek.txt").write_text("α β γ\nδ ε ζ\n")
    with pytest.raises(EvaluationError, match="100% of the tokens are not in the vocabulary"):
        train_on_sentences(bert, tmp_path / "greek.txt", settings())


def test_a_set_or_a_seed_that_fails_hides_no_other(bert: Path, sentences: Path, sts: Path) -> None:
    results = train_on_sentences(
        bert, sentences, settings(fit={"epochs": 1}, max_train=40), sts=sts, names=["constant", "pairs"]
    )
    constant, pairs = results.sets
    assert [failure.what for failure in constant.failures] == ["tf-idf", "before", "seed 0"]
    assert pairs.failures == []
    broken = train_on_sentences(bert, sentences, settings(fit={"epochs": 1, "lr": 1e20}), sts=sts, names=["pairs"])
    assert [failure.what for failure in broken.sets[0].failures] == ["seed 0"]
    assert broken.sets[0].before == pairs.before


def run_command(*words: str) -> Any:
    return CliRunner().invoke(app, ["finetune", "sentence-vectors", *words], catch_exceptions=False)


def test_the_command_trains_scores_and_writes(bert: Path, sentences: Path, sts: Path, tmp_path: Path) -> None:
    out = tmp_path / "vectors.json"
    common = [str(bert), str(sentences), "-o", str(out), "--loss", "simcse", "--seeds", "1", "--epochs", "1"]
    ended = run_command(*common, "--sts", str(sts), "--set", "pairs", "--max-train", "40", "--temperature", "0.1")
    assert ended.exit_code == 0, ended.output
    [row] = [line.split() for line in ended.stdout.splitlines() if line.startswith("pairs")]
    assert row[1:3] == ["40", "spearman"]
    assert "learnt from 40 sentences of sentences.txt without labels" in ended.stdout
    results = read_result(out)
    assert isinstance(results, VectorResults)
    jsonschema.validate(json.loads(out.read_text()), VectorResults.model_json_schema())
    assert results.scores()[0].name == "spearman after training with simcse"
    alone = run_command(*common, "--max-train", "40")
    assert alone.exit_code == 0, alone.output
    assert "scored on dev" not in alone.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--loss", "simcse", "--set", "pairs"], "say with --sts where they are"),
        (["--loss", "simcse", "--margin", "0.1"], "margin is of the loss am-softmax"),
        (["--set", "pairs", "--sts", "folder"], "--sts is of --loss simcse"),
        (["--set", "pairs", "--temperature", "0.1"], "temperature is of the loss simcse"),
        ([], "no set is chosen"),
    ],
)
def test_what_would_have_no_effect_is_refused(bert: Path, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_command(str(bert), "data", "-o", "out.json", *words)
