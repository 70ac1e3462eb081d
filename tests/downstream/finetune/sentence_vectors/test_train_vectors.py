"""Whole trainings of models of a few kilobytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from typer.testing import CliRunner

from kexue_train.cli.app import app
from kexue_train.downstream.finetune.sentence_vectors.bi_encoder import BiEncoder
from kexue_train.downstream.finetune.sentence_vectors.retrieval import RetrievalProblem
from kexue_train.downstream.finetune.sentence_vectors.train_vectors import read_vector_splits, train_vectors
from kexue_train.downstream.load_model import load_encoder
from kexue_train.downstream.results.trained_vectors import VectorResults
from kexue_train.downstream.settings import VectorSettings
from kexue_train.foundation.errors import ConfigError, EvaluationError
from tests.downstream.evaluate.sentence_vectors.oracles import write_set
from tests.downstream.evaluate.sentence_vectors.test_fit_whitening import read_as_sentence_transformers
from tests.downstream.evaluate.zero_shot.tiny_models import make_bert

GROUPS = ("abcdefgh", "ijklmnop", "qrstuvwx")


def sentence(random: np.random.Generator, group: int) -> str:
    """Letters of one group: sentences of a group share few letters, but a model can learn that they belong together."""
    return " ".join(random.choice(list(GROUPS[group]), 3))


def write_pairs(folder: Path, *, seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    for name, number in (("train", 240), ("dev", 60), ("test", 60)):
        records = []
        for _ in range(number):
            first, second = random.integers(0, 3, 2).tolist()
            texts = {"text_a": sentence(random, first), "text_b": sentence(random, second)}
            records.append(texts | {"score": 5.0 - 2 * abs(first - second)})
        write_set(folder, records, f"{name}.jsonl.gz")


def write_classes(folder: Path) -> None:
    random = np.random.default_rng(1)
    for name, number in (("train", 120), ("test", 45)):
        groups = random.integers(0, 3, number).tolist()
        records = [{"text": sentence(random, group), "label": f"group {group}"} for group in groups]
        write_set(folder, records, f"{name}.jsonl")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("bert"), "BertModel", hidden_dropout_prob=0.0, initializer_range=0.1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_pairs(folder / "pairs")
    write_classes(folder / "classes")
    return folder


def settings(**values: Any) -> VectorSettings:
    fit = {"lr": 0.1, "epochs": 2, "batch_size": 20} | values.pop("fit", {})
    return VectorSettings.parse({"seeds": 1, "max_length": 16, "fit": fit, **values}, where="test")


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "expected"), [("cosent", 0.7), ("sentence-bert", 0.35)])
def test_what_the_letters_share_is_learnt_from_pairs(bert: Path, data: Path, loss: str, expected: float) -> None:
    """Sentence-BERT's head may tell the classes without bringing vectors into order, so less is expected of it."""
    [result] = train_vectors(bert, data, ["pairs"], settings(loss=loss, fit={"epochs": 6})).sets
    assert result.failures == []
    assert result.before is not None
    before, after = result.before["test"]["spearman"], result.after["test"]["spearman"].mean
    assert abs(before) < 0.2
    assert after > expected
    [run] = result.runs
    assert run.losses[-1] < run.losses[0]
    assert run.dev_by_epoch[run.best_epoch - 1] == max(run.dev_by_epoch)


def test_am_softmax_brings_sentences_of_a_class_together(bert: Path, data: Path) -> None:
    [result] = train_vectors(bert, data, ["classes"], settings(loss="am-softmax", fit={"epochs": 5})).sets
    assert result.failures == []
    assert result.is_dev_held_out
    assert result.num_labels == 3
    assert result.after["test"]["accuracy"].mean > 0.9


@pytest.mark.slow
def test_scores_without_sense_teach_nothing(bert: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path / "senseless")
    random = np.random.default_rng(2)
    for name, number in (("train", 240), ("dev", 60), ("test", 200)):
        groups = random.integers(0, 3, (number, 2)).tolist()
        records = [
            {"text_a": sentence(random, a), "text_b": sentence(random, b), "score": int(random.integers(6))}
            for a, b in groups
        ]
        write_set(tmp_path / "senseless", records, f"{name}.jsonl.gz")
    [result] = train_vectors(bert, tmp_path, ["senseless"], settings()).sets
    assert abs(result.after["test"]["spearman"].mean) < 0.25


def test_seeds_differ_and_repeat_and_leave_the_given_encoder_alone(bert: Path, data: Path) -> None:
    chosen = settings(seeds=2, fit={"epochs": 1, "gradient_keep": 0.5, "flood_level": 0.1}, max_train=60, max_eval=30)
    first, again = (train_vectors(bert, data, ["pairs"], chosen).sets[0] for _ in range(2))
    assert first == again
    assert first.runs[0].losses != first.runs[1].losses
    assert first.records == {"train": 60, "dev": 30, "test": 30}
    assert first.after["dev"]["spearman"].std is not None


def test_the_saved_encoder_is_the_trained_one(bert: Path, data: Path, tmp_path: Path) -> None:
    from kexue_train.downstream.evaluate.sentence_vectors.score_set import pair_cosines
    from kexue_train.downstream.evaluate.sentence_vectors.spearman import spearman
    from kexue_train.downstream.evaluate.sentence_vectors.sts_sets import Pairs

    chosen = settings(pooling="first-last")
    [result] = train_vectors(bert, data, ["pairs"], chosen, save=tmp_path).sets
    splits = read_vector_splits(data, "pairs", chosen)
    assert splits.test is not None
    pairs = Pairs.of(splits.test)
    vectors = read_as_sentence_transformers(tmp_path / "pairs", pairs.sentences)
    found = spearman(pair_cosines(vectors, pairs.indices), pairs.scores)
    assert found == pytest.approx(result.runs[0].scores["test"]["spearman"], abs=1e-3)
    assert load_encoder(tmp_path / "pairs").model.config.architectures == ["BertModel"]


def test_a_set_that_fails_hides_no_other_and_the_file_follows_its_schema(bert: Path, data: Path) -> None:
    constant = [{"text_a": "a b", "text_b": f"c {i}", "score": 3} for i in range(8)]
    write_set(data / "constant", constant, "train.jsonl")
    write_set(data / "constant", constant, "dev.jsonl")
    write_set(data / "empty", [], "train.jsonl")
    chosen = settings(fit={"epochs": 1})
    results = train_vectors(bert, data, ["constant", "empty", "absent", "pairs", "classes"], chosen)
    failed = {result.name: [(f.what, f.error) for f in result.failures] for result in results.sets}
    assert failed["pairs"] == []
    assert [what for what, _ in failed["constant"]] == ["tf-idf", "before", "seed 0"]
    assert "so they cannot be ranked" in failed["constant"][1][1]
    assert "holds no record" in failed["empty"][0][1]
    assert "no train.jsonl.gz or train.jsonl" in failed["absent"][0][1]
    assert "no value 'text_a'" in failed["classes"][0][1]  # labels are not for CoSENT
    written = json.loads(json.dumps(results.model_dump(mode="json")))
    jsonschema.validate(written, VectorResults.model_json_schema())
    assert VectorResults.model_validate(written) == results
    [(_, header, rows)] = results.tables()
    assert all(len(row) == len(header) for row in rows)
    assert any(note.startswith("absent: no set: ") for note in results.notes())


def test_a_learning_rate_that_breaks_the_model_is_a_failure_of_that_seed(bert: Path, data: Path) -> None:
    [result] = train_vectors(bert, data, ["pairs"], settings(fit={"lr": 1e20, "epochs": 1})).sets
    assert [failure.what for failure in result.failures] == ["seed 0"]
    assert result.before is not None


def test_the_command_writes_and_shows(bert: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "vectors.json"
    common = ["finetune", "sentence-vectors", str(bert), str(data), "-o", str(out), "--seeds", "1", "--epochs", "1"]
    ended = CliRunner().invoke(app, [*common, "--set", "classes", "--loss", "am-softmax", "--max-train", "40"])
    assert ended.exit_code == 0, ended.output
    [result] = VectorResults.model_validate_json(out.read_text()).sets
    shown = [line.split() for line in ended.stdout.splitlines() if line.startswith("classes")]
    assert [row[2] for row in shown] == ["accuracy", "mrr"]
    assert shown[0][-1] == f"{100 * result.after['test']['accuracy'].mean:.1f}"
    assert CliRunner().invoke(app, [*common, "--set", "absent"]).exit_code == 1
    with pytest.raises(ConfigError, match="loss"):
        CliRunner().invoke(app, [*common, "--set", "pairs", "--loss", "triplet"], catch_exceptions=False)
    with pytest.raises(EvaluationError, match="no such folder"):
        train_vectors(bert, tmp_path / "nowhere", ["pairs"], settings())


def test_scale_and_margin_change_what_is_learnt_and_are_told(bert: Path, data: Path) -> None:
    found = {}
    for name, values in {"usual": {}, "scale": {"scale": 5.0}, "margin": {"margin": 0.0}}.items():
        chosen = settings(loss="am-softmax", fit={"epochs": 1}, max_train=40, **values)
        results = train_vectors(bert, data, ["classes"], chosen)
        found[name] = (results.scale, results.margin, results.sets[0].runs[0].losses)
    assert [entry[:2] for entry in found.values()] == [(30, 0.35), (5, 0.35), (30, 0)]
    assert len({tuple(entry[2]) for entry in found.values()}) == 3


def test_the_margin_is_taken_from_the_classes(bert: Path, data: Path) -> None:
    chosen = settings(loss="am-softmax", margin_from_diameter=True, fit={"epochs": 5})
    results = train_vectors(bert, data, ["classes"], chosen)
    [result] = results.sets
    assert result.failures == []
    [margin] = result.margins
    assert 0 < margin < 1
    given = train_vectors(bert, data, ["classes"], settings(loss="am-softmax", margin=margin, fit={"epochs": 5}))
    assert given.sets[0].runs == result.runs  # the second training is one with that margin
    assert results.margin is None
    assert any(f"diameter of the classes: {margin:.3f}" in note for note in results.notes())


def test_the_diameter_is_twice_the_mean_distance_of_a_sentence_to_its_class(
    bert: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_encoder(bert)
    splits = read_vector_splits(data, "classes", settings(loss="am-softmax"))
    problem = RetrievalProblem(splits, loaded.tokenizer, 16)
    model = BiEncoder(loaded, "mean", "classes", 3, seed=0)
    vectors, labels = model.encode(problem.sentences["train"]), problem.labels["train"]
    distances = []
    for vector, label in zip(vectors, labels, strict=True):
        others = vectors[labels == label]
        center = (others / np.linalg.norm(others, axis=1, keepdims=True)).mean(0)
        distances.append(1 - vector @ center / np.linalg.norm(vector) / np.linalg.norm(center))
    assert problem.class_diameter(model) == pytest.approx(2 * np.mean(distances), rel=1e-5)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (len(vectors), 1))
    monkeypatch.setattr(model, "encode", lambda _: vectors * signs)
    with pytest.raises(EvaluationError, match="too much for a margin; train longer"):
        problem.class_diameter(model)


def test_one_class_and_two_margins_are_refused(bert: Path, tmp_path: Path) -> None:
    write_set(tmp_path / "one", [{"text": f"a {i}", "label": "same"} for i in range(40)], "train.jsonl")
    [result] = train_vectors(bert, tmp_path, ["one"], settings(loss="am-softmax")).sets
    assert "every training record has the label 'same'" in result.failures[0].error
    with pytest.raises(ConfigError, match="both say what the margin is"):
        settings(loss="am-softmax", margin=0.1, margin_from_diameter=True)
