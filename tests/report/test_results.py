import json

from kexue_train.report.results import evaluation_tables, read_zero_shot, scores_of
from kexue_train.report.run_data import load_run


def table_of(run_dir, word):
    return next(table for table in evaluation_tables(load_run(run_dir)) if word in table.caption)


def test_zero_shot_stands_beside_chance_and_published_rows(eventful_run):
    table = table_of(eventful_run, "Zero-shot")
    assert table.header == ["", "records", "chance", "NSP-BERT", "NSP", "PET"]
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
    assert read_zero_shot(load_run(eventful_run)) is None
    assert table_of(eventful_run, "Zero shot").rows == [["a", "0.5"]]


def test_scores_say_which_way_is_better(eventful_run):
    scores = {(score.group, score.metric): score for score in scores_of(load_run(eventful_run))}
    loss = scores["held-out text", "loss on hidden tokens (nats)"]
    assert (loss.text, loss.higher_is_better) == ("4.903", False)
    assert scores["eprstmt", "zero-shot accuracy, PET"].text == "55.0%"
    assert scores["mean of all tasks", "zero-shot accuracy, NSP"].value == 0.5955


def test_a_run_without_evaluation_has_no_scores(young_run):
    assert (scores_of(load_run(young_run)), evaluation_tables(load_run(young_run))) == ([], [])
