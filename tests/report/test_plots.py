import pytest

from kexue_train.metrics.fields import LEARNING_RATE
from kexue_train.report.plots import band_bars, data_bars, points_of, training_charts
from kexue_train.report.run_data import load_run


def test_values_that_are_not_finite_are_left_out():
    records = [{"step": 1, "lr": float("nan")}, {"step": 2, "lr": None}, {"step": 3, "lr": 0.5}, {"lr": 1.0}]
    assert points_of(records, LEARNING_RATE) == [(3.0, 0.5)]


def test_loss_is_drawn_with_the_entropy_of_the_targets(finished_run):
    assert "best without context: 6.601" in training_charts(load_run(finished_run))["learning"][0].description


def test_entropy_of_the_training_text_serves_until_the_evaluation(finished_run):
    (finished_run / "evaluate" / "mlm.json").unlink()
    run = load_run(finished_run)
    assert f"best without context: {run.training_entropy:.4g}" in training_charts(run)["learning"][0].description


def test_every_chart_of_a_whole_run_is_there(eventful_run):
    run = load_run(eventful_run)
    names = {section: [chart.name for chart in charts] for section, charts in training_charts(run).items()}
    assert names == {
        "learning": ["mlm-loss", "mlm-accuracy", "nsp-loss", "nsp-accuracy", "learning-rate"],
        "speed": ["throughput", "mfu", "data-wait"],
        "monitor": ["embedding-rms", "embedding-max"],
    }


def test_what_happened_is_marked_once(eventful_run):
    events = training_charts(load_run(eventful_run))["learning"][0].events
    assert [event.label for event in events] == ["rolled back", "resumed", ""]  # the phase is too close to have a label


def test_training_without_next_sentences_has_no_chart_of_them(young_run):
    text = (young_run / "pretrain" / "metrics.jsonl").read_text().replace("nsp_", "nothing_")
    (young_run / "pretrain" / "metrics.jsonl").write_text(text)
    assert not {"nsp-accuracy", "nsp-loss"} & {chart.name for chart in training_charts(load_run(young_run))["learning"]}


def test_bars_are_shares_of_the_longest(finished_run):
    run = load_run(finished_run)
    (bands,), (words,) = band_bars(run), data_bars(run)
    assert [bar.share for bar in bands.bars] == pytest.approx([1, 0.3122 / 0.5213, 0.1731 / 0.5213, 0.0712 / 0.5213])
    assert bands.bars[0].text == "52.1%"
    assert [bar.text for bar in words.bars] == ["83.84%", "16.12%", "0.04%"]
