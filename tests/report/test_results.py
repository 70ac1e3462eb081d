import json

from kexue_train.downstream.results.fine_tuning import Baseline, EncoderResult, FineTunedTaskResult, FineTuningResults
from kexue_train.downstream.results.similarity import StsFailure, StsResults, StsScore, StsSetResult
from kexue_train.downstream.results.trained_vectors import VectorResults, VectorSetResult
from kexue_train.downstream.results.training import Spread
from kexue_train.downstream.settings import FitSettings
from kexue_train.report.anomalies import find_anomalies
from kexue_train.report.results import evaluation_tables, scores_of
from kexue_train.report.run_data import load_run


def table_of(run_dir, word):
    return next(table for table in evaluation_tables(load_run(run_dir)) if word in table.caption)


def test_zero_shot_stands_beside_chance_and_published_rows(eventful_run):
    table = table_of(eventful_run, "Zero-shot")
    assert table.header == ["task", "records", "chance", "NSP-BERT", "NSP", "PET"]
    assert table.rows[0] == ["eprstmt", "610", "50.0", "86.9", "66.1", "55.0"]
    assert table.rows[2] == ["tnews", "0", "–", "51.0", "–", "–"]
    assert table.rows[-1][0] == "mean"


def test_notes_tell_assumptions_and_failures(eventful_run):
    notes = " ".join(table_of(eventful_run, "Zero-shot").notes)
    assert "assumes that all labels are equally frequent" in notes
    assert "tnews: no score: tnews/test_public.json: cannot be read" in notes


def test_results_of_other_evaluations_are_shown_as_they_are(eventful_run):
    overall, sets = (t for t in evaluation_tables(load_run(eventful_run)) if t.caption.startswith("Sentence vectors"))
    assert overall.rows == [["pooling", "mean"]]
    assert sets.header == ["set", "pairs", "spearman: plain", "spearman: whitened"]
    assert sets.rows[0] == ["lcqmc", "12,500", "0.412", "0.533"]


def test_zero_shot_of_another_form_is_shown_as_it_is(eventful_run):
    (eventful_run / "evaluate" / "zero_shot.json").write_text(json.dumps({"tasks": [{"task": "a", "score": 0.5}]}))
    assert load_run(eventful_run).results["zero_shot"].headlines() == []
    assert table_of(eventful_run, "Zero shot").rows == [["a", "0.5"]]


def test_scores_say_which_way_is_better(eventful_run):
    scores = {(score.group, score.name): score for score in scores_of(load_run(eventful_run))}
    loss = scores["held-out text", "loss on hidden tokens (nats)"]
    assert (loss.text, loss.higher_is_better) == ("4.903", False)
    assert scores["eprstmt", "zero-shot accuracy, PET"].text == "55.0%"
    assert scores["mean of all tasks", "zero-shot accuracy, NSP"].value == 0.5955


def test_a_run_without_evaluation_has_no_scores(young_run):
    assert (scores_of(load_run(young_run)), evaluation_tables(load_run(young_run))) == ([], [])


def write_results(run_dir, name, results):
    (run_dir / "evaluate" / f"{name}.json").write_text(results.model_dump_json(), encoding="utf-8")


def test_sentence_similarity_stands_beside_its_baselines(finished_run):
    scores = [StsScore(pooling="mean", whitening="none", dimensions=256, spearman=0.412, standard_error=0.02)]
    good = StsSetResult(name="lcqmc", language="zh", pairs=12_500, scores=scores, baselines={"tf-idf": 0.35})
    bad = StsSetResult(name="pawsx", language="zh", failures=[StsFailure(column="cls", error="all scores are equal")])
    means = {"all": {"mean": 0.412}}
    results = StsResults(model_type="bert", parameters=9, max_length=64, sets=[good, bad], means=means)
    write_results(finished_run, "anything", results)
    table = table_of(finished_run, "Sentence similarity")
    assert table.header == ["set", "pairs", "tf-idf", "mean"]
    assert table.rows[0] == ["lcqmc", "12,500", "35.0", "41.2"]
    run = load_run(finished_run)
    assert [(s.group, s.metric, s.text) for s in scores_of(run)][-1] == ("lcqmc", "spearman", "0.412")
    assert "pawsx has no cls in anything" in {anomaly.what for anomaly in find_anomalies(run)}


def test_fine_tuning_stands_beside_a_random_encoder_and_baselines(finished_run):
    def encoder(name, mean):
        scores = {"test": {"accuracy": Spread(mean=mean, std=0.004), "f1": Spread(mean=0.1, std=0.0)}}
        return EncoderResult(encoder=name, runs=[], scores=scores)

    task = FineTunedTaskResult(
        task="chnsenti",
        title="hotel reviews",
        kind="classification",
        metric="accuracy",
        records={"train": 4000, "test": 1000},
        baselines=[Baseline(name="bag_of_words", scores={"test": {"accuracy": 0.85}})],
        encoders=[encoder("random", 0.8), encoder("pretrained", 0.9)],
    )
    results = FineTuningResults(model_type="bert", parameters=9, seeds=3, one_segment=False, tasks=[task])
    write_results(finished_run, "finetune", results)
    row = table_of(finished_run, "Fine-tuned").rows[0]
    assert row == ["chnsenti", "4,000", "1,000 test", "accuracy", "–", "–", "85.0", "80.0 ± 0.4", "90.0 ± 0.4"]
    last = scores_of(load_run(finished_run))[-1]
    assert (last.task_type, last.name, last.text) == ("text-classification", "accuracy after fine-tuning", "90.0%")


def test_trained_vectors_stand_beside_those_before(finished_run):
    found = VectorSetResult(
        name="stsb_zh",
        metric="spearman",
        records={"train": 5000, "test": 1361},
        before={"test": {"spearman": 0.4}},
        after={"test": {"spearman": Spread(mean=0.7, std=None)}},
    )
    results = VectorResults(
        model_type="bert",
        parameters=9,
        loss="cosent",
        pooling="cls",
        max_length=64,
        seeds=1,
        fit=FitSettings(),
        sets=[found],
    )
    write_results(finished_run, "vectors", results)
    assert table_of(finished_run, "Sentence vectors, trained").rows == [
        ["stsb_zh", "5,000", "spearman", "–", "40.0", "70.0"]
    ]
    assert scores_of(load_run(finished_run))[-1].value == 0.7
