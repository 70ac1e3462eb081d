import io
import json

import pytest
from rich.console import Console

from kexue_train.cli.ending import print_ending
from kexue_train.report.summary import confidence, summarise
from tests.report.example_run import MLM


def rewrite_scores(run_dir, **hidden):
    scores = {**MLM, "hidden_only": {**MLM["hidden_only"], **hidden}}
    (run_dir / "evaluate" / "mlm.json").write_text(json.dumps(scores))


def test_good_model_is_compared_with_the_best_without_context(finished_run):
    summary = summarise(finished_run)
    assert summary.is_complete
    assert "21.8% of the hidden tokens" in summary.quality
    assert "4.90 nats, 1.68 below 6.58" in summary.quality
    assert "69.2% of 903 pairs (guessing: 50.8%)" in summary.quality


def test_model_that_learnt_frequencies_only_is_said_to(finished_run):
    rewrite_scores(finished_run, mlm_loss=6.57)
    assert "has not learnt to use the context" in summarise(finished_run).quality


def test_next_sentence_within_chance_is_not_called_better(finished_run):
    (finished_run / "evaluate" / "mlm.json").write_text(json.dumps({**MLM, "nsp_accuracy": 0.53}))
    assert "not reliably better than guessing" in summarise(finished_run).quality


def test_run_in_progress_tells_its_step_and_last_validation(young_run):
    summary = summarise(young_run)
    assert not summary.is_complete
    assert summary.state == "in progress, training at step 300 of 1,000"
    assert "validation, at step 300" in summary.quality
    assert summary.model_dir is None


def test_time_adds_up_the_stages(finished_run):
    assert summarise(finished_run).seconds == pytest.approx(14 + 6 + 5 + 21 + 322 + 4 + 9)


def test_markdown_names_the_model_its_place_and_how_to_load_it(finished_run):
    text = summarise(finished_run).to_markdown()
    assert text.startswith("# demo: complete\n")
    for part in ("5.31 M parameters", f"`{finished_run / 'hf'}`", "6 min 21 s", "AutoModel.from_pretrained"):
        assert part in text


def test_records_that_could_not_be_used_are_told_at_the_end(finished_run, eventful_run):
    sentence = f"3 records rejected (3 not valid UTF-8): see {eventful_run / 'shards' / 'rejected'}."
    assert summarise(eventful_run).losses == sentence
    assert sentence in summarise(eventful_run).to_markdown()
    assert summarise(finished_run).losses == ""
    shown = io.StringIO()
    print_ending(eventful_run, Console(file=shown))
    assert f"\n{sentence}\n" in shown.getvalue()


def test_snippet_is_python(finished_run):
    compile(summarise(finished_run).snippet, "snippet", "exec")


def test_confidence_of_half_on_a_hundred_cases_is_a_tenth():
    assert confidence(0.5, 100) == pytest.approx(0.098)
