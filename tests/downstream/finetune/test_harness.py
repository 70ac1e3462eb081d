"""Fine-tuning as a whole: a tiny encoder learns what can be learnt, and nothing that cannot."""

from __future__ import annotations

import json

import jsonschema
import pytest

from kexue_train.downstream.finetune import harness
from kexue_train.downstream.finetune.harness import finetune_tasks
from kexue_train.downstream.finetune.tasks.task import KINDS
from kexue_train.downstream.load_model import load_with_head, with_fresh_weights
from kexue_train.downstream.results.fine_tuning import FineTuningResults
from kexue_train.downstream.settings import HarnessSettings
from kexue_train.foundation.errors import EvaluationError, TrainingError
from tests.downstream.evaluate.zero_shot.tiny_models import export_roformer, make_bert, random_roformer
from tests.downstream.finetune.tasks.tiny_tasks import (
    choice_of_options,
    make_encoder,
    make_files,
    pair_with_a_label,
    question_with_an_answer,
    text_with_a_label,
    text_with_a_random_label,
    text_with_entities,
    write_records,
)

MAKERS = {
    "label": (text_with_a_label, "classification", {}),
    "pair": (pair_with_a_label, "classification", {"text": "{text_a}", "text_b": "{text_b}"}),
    "noise": (text_with_a_random_label, "classification", {}),
    "entities": (text_with_entities, "tagging", {"tokens": "tokens", "joined_by": " "}),
    "answer": (question_with_an_answer, "reading", {}),
    "option": (choice_of_options, "choice", {}),
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return make_encoder(tmp_path_factory.mktemp("models") / "roformer")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("tasks")
    for name, (make, _, _) in MAKERS.items():
        make_files(root / name, make, train=160, dev=80, test=100)
    return root


def task(name, **values):
    _, kind, own = MAKERS[name]
    files = {split: f"{name}/{split}.jsonl" for split in ("train", "dev", "test")}
    return KINDS[kind].parse({"title": name, "kind": kind, **files, **own, **values}, where="test")


def run(encoder, data, tasks, **values):
    values = {"seeds": 1, "epochs": 6, "batch_size": 16, "lr": 5e-2, "random_encoder": False, **values}
    return finetune_tasks(encoder, data, tasks, HarnessSettings.parse(values, where="test"))


def score_of(result, split="test"):
    [encoder] = result.encoders
    return encoder.scores[split][result.metric].mean


@pytest.mark.slow
@pytest.mark.parametrize("name", ["label", "pair", "entities", "answer", "option"])
def test_what_the_text_shows_is_learnt_completely(encoder, data, name):
    [result] = run(encoder, data, {name: task(name)}).tasks
    assert result.failures == []
    assert score_of(result) > 0.99


@pytest.mark.slow
def test_labels_that_nothing_tells_are_guessed_at_chance(encoder, data):
    [result] = run(encoder, data, {"noise": task("noise")}, random_encoder=True).tasks
    scores = [encoder.scores["test"]["accuracy"].mean for encoder in result.encoders]
    scores += [b.scores["test"]["accuracy"] for b in result.baselines]
    assert len(scores) == 2 + 3
    assert all(abs(score - 0.5) < 4 * (0.25 / 100) ** 0.5 for score in scores)  # four standard errors


@pytest.fixture(scope="module")
def results(encoder, data):
    """Two seeds of two encoders on few records, beside a task without data."""
    tasks = {"lost": task("label", train="nowhere.jsonl"), "label": task("label"), "option": task("option")}
    values = {"seeds": 2, "epochs": 2, "max_train": 40, "max_eval": 30, "random_encoder": True}
    return run(encoder, data, tasks, **values)


def test_a_task_that_fails_hides_no_other(results):
    lost, label, option = results.tasks
    [failure] = lost.failures
    assert "nowhere.jsonl: cannot be read" in failure.error
    assert (failure.encoder, lost.encoders, lost.records) == (None, [], {})
    assert not label.failures + option.failures
    assert [encoder.encoder for encoder in label.encoders] == ["pretrained", "random"]


def test_every_seed_and_the_spread_over_them_are_told(results):
    for result in results.tasks[1:]:
        for encoder in result.encoders:
            assert [run.seed for run in encoder.runs] == [0, 1]
            first, second = (run.scores["test"]["accuracy"] for run in encoder.runs)
            spread = encoder.scores["test"]["accuracy"]
            assert spread.mean == pytest.approx((first + second) / 2)
            assert spread.std == pytest.approx(abs(first - second) / 2**0.5)
            for run_ in encoder.runs:
                assert len(run_.losses) == len(run_.dev_by_epoch) == 2
                assert run_.scores["dev"]["accuracy"] == max(run_.dev_by_epoch)
                assert run_.dev_by_epoch[run_.best_epoch - 1] == max(run_.dev_by_epoch)


def test_records_and_settings_are_told(results):
    label = results.tasks[1]
    assert label.records == {"train": 40, "examples": 40, "dev": 30, "test": 30}
    assert (label.fit.epochs, label.fit.batch_size, label.fit.lr) == (2, 16, 0.05)
    assert (label.max_length, label.num_labels) == (128, 2)
    assert [baseline.name for baseline in label.baselines] == ["chance", "majority", "bag_of_words"]
    assert label.baselines[2].penalty in (10, 1, 0.1, 0.01)


def test_results_survive_json_and_fit_their_schema(results):
    written = json.loads(results.model_dump_json())
    jsonschema.validate(written, FineTuningResults.model_json_schema())
    assert FineTuningResults.model_validate(written) == results
    assert written["schema_version"] == 1


def test_the_table_has_a_row_per_task_with_means_and_deviations(results):
    [(_, header, rows)] = results.tables()
    assert {len(row) for row in rows} == {len(header)}
    assert rows[0] == ["lost", *[""] * 8]
    spread = results.tasks[1].encoders[0].scores["test"]["accuracy"]
    assert rows[1][:5] == ["label", "40", "30 test", "accuracy", "50.0"]
    assert rows[1][-1] == f"{100 * spread.mean:.1f} ± {100 * spread.std:.1f}"
    units, failed = results.notes()
    assert units == "In percent; the encoders over 2 seeds, mean ± standard deviation."
    assert failed.startswith("lost: no score: ")


def test_the_same_seeds_give_the_same_scores_and_losses(encoder, data):
    one, other = (run(encoder, data, {"label": task("label")}, epochs=1, max_train=40, seeds=2) for _ in range(2))
    assert one == other
    first, second = one.tasks[0].encoders[0].runs
    assert first.losses != second.losses


def test_a_random_encoder_starts_from_other_weights_of_the_same_sizes(encoder):
    given = load_with_head(encoder, "AutoModelForSequenceClassification", 3, seed=5)
    fresh, again, other = (with_fresh_weights(given, seed=seed) for seed in (5, 5, 6))
    tensors = [dict(model.named_parameters()) for model in (given, fresh, again, other)]
    assert {n: t.shape for n, t in tensors[0].items()} == {n: t.shape for n, t in tensors[1].items()}
    weights = [tensor[next(n for n in tensor if "layer.0" in n)] for tensor in tensors]
    assert (weights[1] == weights[2]).all()
    assert not (weights[0] == weights[1]).all()
    assert not (weights[1] == weights[3]).all()


def test_the_head_is_fixed_by_the_seed_and_the_body_is_that_of_the_folder(encoder):
    one, same, other = (
        load_with_head(encoder, "AutoModelForSequenceClassification", 3, seed=seed) for seed in (0, 0, 1)
    )
    assert (one.classifier.weight == same.classifier.weight).all()
    assert not (one.classifier.weight == other.classifier.weight).all()
    table = one.get_input_embeddings().weight
    assert (table == other.get_input_embeddings().weight).all()


@pytest.mark.parametrize("name", ["label", "entities", "answer", "option"])
def test_a_bert_of_transformers_does_as_well(data, name, tmp_path):
    make_bert(tmp_path / "bert", max_position_embeddings=40)
    [result] = run(tmp_path / "bert", data, {name: task(name)}, epochs=1, max_train=8, max_eval=8).tasks
    assert result.failures == []
    assert result.max_length == 40  # no more than the model was made for
    assert 0 <= score_of(result) <= 1


def test_a_run_that_breaks_is_a_failure_of_that_seed_alone(encoder, data, monkeypatch):
    def train_seed(*arguments, seed, **options):
        if seed == 1:
            raise TrainingError("the loss is nan")
        return real(*arguments, seed=seed, **options)

    real = harness.train_seed
    monkeypatch.setattr(harness, "train_seed", train_seed)
    results = run(encoder, data, {"label": task("label")}, seeds=3, epochs=1, max_train=16, max_eval=8)
    [result] = results.tasks
    assert [run_.seed for run_ in result.encoders[0].runs] == [0, 2]
    [failure] = result.failures
    assert (failure.encoder, failure.seed, failure.error) == ("pretrained", 1, "the loss is nan")
    assert results.notes()[1:] == ["label: no score of the pretrained encoder, seed 1: the loss is nan"]


def test_damaged_weights_spoil_no_baseline(data, tmp_path):
    model = random_roformer()
    model.roformer.encoder.layer[0].output.dense.weight.data[0, 0] = float("nan")
    damaged = export_roformer(tmp_path / "roformer", model)
    values = {"epochs": 1, "max_train": 16, "max_eval": 8, "random_encoder": True}
    [result] = run(damaged, data, {"label": task("label")}, **values).tasks
    [failure] = result.failures
    assert failure.encoder == "pretrained"
    assert "the loss is nan" in failure.error
    assert [encoder.encoder for encoder in result.encoders] == ["random"]
    assert len(result.baselines) == 3


def test_gradient_dropout_flooding_and_one_segment_change_what_is_learnt(encoder, data):
    def losses(**values):
        [result] = run(encoder, data, {"pair": task("pair")}, epochs=2, max_train=32, max_eval=8, **values).tasks
        return result.encoders[0].runs[0].losses

    plain = losses()
    assert plain == losses()
    for values in ({"gradient_keep": 0.3}, {"one_segment": True}):
        assert losses(**values) != plain
    assert min(losses(flood_level=0.6)) > 0.5  # the loss stays near the level


def test_long_texts_and_unknown_signs_are_remarked_on(encoder, tmp_path):
    records = [{"text": f"{'x y'[2 * (i % 2)]} " + "! " * 40, "label": str(i % 2)} for i in range(8)]
    write_records(tmp_path / "noise.jsonl", records)
    chosen = task("label", train="noise.jsonl", dev="noise.jsonl", test=None)
    results = run(encoder, tmp_path, {"noise": chosen}, epochs=1, max_length=16)
    assert results.tasks[0].cut == 16  # train and dev
    assert results.tasks[0].unknown_rate == pytest.approx(40 / 41)
    remarks = " / ".join(results.notes())
    assert "scored on the records that chose the epoch, so a little too well: noise" in remarks
    assert "noise 16 of 16" in remarks
    assert "unknown tokens, so the model cannot read these texts: noise 98%" in remarks


def test_what_cannot_be_loaded_is_refused_at_once(encoder, data, tmp_path):
    with pytest.raises(EvaluationError, match="no such folder"):
        run(encoder, data / "nowhere", {"label": task("label")})
    with pytest.raises(EvaluationError, match=r"no config.json"):
        run(tmp_path, data, {"label": task("label")})
