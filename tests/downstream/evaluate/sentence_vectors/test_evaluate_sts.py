"""Whole evaluations with vectors whose right order is known, and with real models of a few kilobytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from kexue_train.downstream.evaluate.sentence_vectors import evaluate_sts as module
from kexue_train.downstream.evaluate.sentence_vectors.evaluate_sts import evaluate_sts, means_of
from kexue_train.downstream.evaluate.sentence_vectors.score_set import WhiteningChoice, pair_cosines, score_baselines
from kexue_train.downstream.evaluate.sentence_vectors.sts_sets import Pairs, StsSet, catalogue, choose_sets, read_set
from kexue_train.downstream.results.similarity import StsResults, StsSetResult
from kexue_train.downstream.task_files import read_data_file
from kexue_train.foundation.errors import ConfigError, EvaluationError
from tests.downstream.evaluate.sentence_vectors.oracles import known_vectors, make_records, write_set
from tests.downstream.evaluate.zero_shot.tiny_models import make_bert


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("bert"), "BertModel")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_set(tmp_path / "mine", make_records())
    return tmp_path


def give_vectors(monkeypatch: pytest.MonkeyPatch, vectors: Any) -> None:
    """In place of the model's: ``vectors`` of the sentences."""
    texts: list[str] = []

    def remembering(name: str, entry: StsSet, folder: Path) -> Pairs:
        pairs = read_set(name, entry, folder)
        texts[:] = pairs.sentences
        return pairs

    monkeypatch.setattr(module, "read_set", remembering)
    monkeypatch.setattr(module, "encode_sentences", lambda *_, **__: {"mean": vectors(texts)})


def only_score(results: StsResults) -> float:
    [score] = results.sets[0].scores
    return score.spearman


PLAIN = WhiteningChoice(kind="none")


def test_vectors_that_know_the_scores_earn_1_and_shuffled_ones_nothing(
    monkeypatch: pytest.MonkeyPatch, bert: Path, data: Path
) -> None:
    scores_of = {str(r["text_a"]): float(str(r["score"])) for r in make_records()}
    give_vectors(monkeypatch, lambda texts: known_vectors(texts, scores_of))
    sets = {"mine": StsSet()}
    assert only_score(evaluate_sts(bert, data, sets, whitening=PLAIN)) == pytest.approx(1.0)
    give_vectors(monkeypatch, lambda texts: known_vectors(texts, {text: 5 - s for text, s in scores_of.items()}))
    assert only_score(evaluate_sts(bert, data, sets, whitening=PLAIN)) == pytest.approx(-1.0)
    shuffled = dict(zip(scores_of, np.random.default_rng(0).permutation(list(scores_of.values())), strict=True))
    give_vectors(monkeypatch, lambda texts: known_vectors(texts, shuffled))
    assert abs(only_score(evaluate_sts(bert, data, sets, whitening=PLAIN))) < 0.2


def test_a_whitening_finds_the_order_that_one_loud_direction_hides(
    monkeypatch: pytest.MonkeyPatch, bert: Path, data: Path
) -> None:
    scores_of = {str(r["text_a"]): float(str(r["score"])) for r in make_records()}

    def loud(texts: list[str]) -> np.ndarray:
        noise = np.random.default_rng(1).normal(5, 30, (len(texts), 1))
        return np.hstack([known_vectors(texts, scores_of), noise])

    give_vectors(monkeypatch, loud)
    plain, whitened = evaluate_sts(bert, data, {"mine": StsSet()}).sets[0].scores
    assert (plain.whitening, whitened.whitening, whitened.dimensions) == ("none", "own", 3)
    assert whitened.spearman > plain.spearman + 0.2


def test_a_real_model_is_scored_by_every_pooling_and_the_file_follows_its_schema(bert: Path, data: Path) -> None:
    results = evaluate_sts(bert, data, {"mine": StsSet(published={"Somebody": 50.0})})
    assert [score.column for score in results.sets[0].scores] == [
        "cls", "cls whitened", "mean", "mean whitened", "first-last", "first-last whitened",
    ]  # fmt: skip
    # BERT's layer norm takes the mean away: its vectors lie in a plane of one dimension less.
    assert [score.dimensions for score in results.sets[0].scores] == [16, 15] * 3
    written = json.loads(json.dumps(results.model_dump(mode="json")))
    jsonschema.validate(written, StsResults.model_json_schema())
    assert StsResults.model_validate(written) == results
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(written | {"sets": [{"name": 3}]}, StsResults.model_json_schema())


def test_a_set_that_fails_hides_no_other(bert: Path, data: Path) -> None:
    write_set(data / "constant", [record | {"score": 2} for record in make_records(20)])
    write_set(data / "empty", [])
    write_set(
        data / "foreign",
        [record | {"text_a": "字" * 9, "text_b": "典" * i} for i, record in enumerate(make_records(9), 1)],
    )
    write_set(data / "wrong", [record | {"score": "high"} for record in make_records(3)])
    (data / "torn").mkdir()
    (data / "torn" / "test.jsonl.gz").write_bytes((data / "mine" / "test.jsonl.gz").read_bytes()[:60])
    names = ["constant", "empty", "mine", "foreign", "wrong", "torn", "absent"]
    results = evaluate_sts(bert, data, {name: StsSet() for name in names}, whitening=PLAIN)
    errors = {result.name: [failure.error for failure in result.failures] for result in results.sets}
    assert errors.pop("mine") == []
    assert len(results.sets[2].scores) == 3
    for name, error in {
        "constant": "all 20 scores are 2, so they cannot be ranked",
        "empty": "holds no record",
        "foreign": "100% of the tokens are unknown",
        "wrong": "test.jsonl.gz:1: 'score' is 'high'; expected a number",
        "torn": "torn/test.jsonl.gz: cannot be read",
        "absent": "absent/test.jsonl.gz: no such file",
    }.items():
        found = errors[name][-1]
        assert error in found
    assert any(note.startswith("constant: no score: all 20 scores") for note in results.notes())
    [(_, header, rows)] = results.tables()
    assert [row[0] for row in rows] == [*names, "mean, all"]
    assert all(len(row) == len(header) for row in rows)


def test_a_whitening_to_too_many_dimensions_leaves_the_plain_vectors(bert: Path, data: Path) -> None:
    results = evaluate_sts(bert, data, {"mine": StsSet()}, whitening=WhiteningChoice(dimensions=16))
    assert [score.column for score in results.sets[0].scores] == ["cls", "mean", "first-last"]
    assert [failure.column for failure in results.sets[0].failures] == [
        "cls whitened 16", "mean whitened 16", "first-last whitened 16",
    ]  # fmt: skip


def test_vectors_that_are_not_finite_or_without_direction_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: Path
) -> None:
    import torch
    import transformers

    folder = make_bert(tmp_path / "broken", "BertModel")
    model = transformers.BertModel.from_pretrained(folder)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[5] = float("nan")  # the letter a
    model.save_pretrained(folder)
    [failure] = evaluate_sts(folder, data, {"mine": StsSet()}).sets[0].failures
    assert "sentence vectors (cls) are not finite, so the model is damaged" in failure.error
    with pytest.raises(EvaluationError, match="1 of 2 vectors are zero"):
        pair_cosines(np.array([[0.0, 0.0], [1.0, 0.0]]), np.array([[0, 1]]))


def test_words_order_pairs_that_share_them_and_random_vectors_nothing() -> None:
    texts = ["a b c", "a b c d", "a x y", "u v w", "天地人", "天地我", "他们也"]
    pairs = Pairs(texts, np.array([[0, 1], [0, 2], [0, 3], [4, 5], [4, 6]]), np.array([5, 2, 0, 4, 0.0]))
    found, failures = score_baselines(pairs)
    assert found["tf-idf"] > 0.9
    assert not failures
    many = Pairs([str(i) for i in range(2000)], np.arange(2000).reshape(-1, 2), np.arange(1000.0))
    found, failures = score_baselines(many)
    assert abs(found["random"]) < 0.1
    assert [failure.column for failure in failures] == ["tf-idf"]  # no pair shares a word


def test_equal_sentences_are_encoded_once_and_labels_count_as_scores(tmp_path: Path) -> None:
    records = [{"text_a": "x", "text_b": "y", "label": "1"}, {"text_a": "y", "text_b": "x", "label": 0}]
    pairs = Pairs.of(read_data_file(write_set(tmp_path / "s", records) / "test.jsonl.gz"))
    assert pairs.sentences == ["x", "y"]
    assert pairs.indices.tolist() == [[0, 1], [1, 0]]
    assert pairs.scores.tolist() == [1.0, 0.0]


def test_all_files_of_a_set_are_scored_as_one(tmp_path: Path) -> None:
    for name, number in (("b.jsonl.gz", 3), ("a.jsonl.gz", 2)):
        write_set(tmp_path / "sts12", make_records(number), name)
    assert len(read_set("sts12", catalogue()["sts12"], tmp_path).scores) == 5


def test_sets_are_chosen_by_name(data: Path) -> None:
    with pytest.raises(EvaluationError, match=r"holds none of the sets cnsd_stsb, .*; name others by --set"):
        choose_sets([], data)
    write_set(data / "sick_r", make_records(3))
    assert list(choose_sets([], data)) == ["sick_r"]
    assert list(choose_sets(["mine", "stsb_en"], data)) == ["mine", "stsb_en"]
    with pytest.raises(ConfigError, match="'stsb_eng' is not known, did you mean 'stsb_en'"):
        choose_sets(["stsb_eng"], data)
    with pytest.raises(EvaluationError, match="no such folder"):
        choose_sets([], data / "nowhere")


def test_means_are_taken_where_every_set_has_a_value() -> None:
    def result(name: str, language: str, **baselines: float) -> StsSetResult:
        return StsSetResult(name=name, language=language, baselines=baselines)

    results = [result("a", "zh", x=0.2, y=0.4), result("b", "zh", x=0.4), result("c", "en", x=0.9, y=0.1)]
    means = means_of(results)
    assert means == {"zh": {"x": pytest.approx(0.3)}, "en": {"x": 0.9, "y": 0.1}, "all": {"x": pytest.approx(0.5)}}
    assert list(means_of(results[:2])) == ["zh"]
    assert list(means_of([result("d", "", x=0.1)])) == ["all"]
