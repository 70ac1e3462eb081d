import pytest

from kexue_train.report.plots import learning_plots, plot_bands, plot_curves, stage_plots
from kexue_train.report.run_data import load_run

RECORDS = [{"step": step, "mlm_loss": 10.0 - step / 100} for step in range(1, 5001)]


def test_long_runs_are_thinned_and_keep_their_last_point():
    figure = plot_curves("loss", "Loss", RECORDS, [], "mlm_loss").figure
    assert len(figure.data[0].x) <= 2000
    assert figure.data[0].x[-1] == 5000


def test_values_that_are_not_finite_are_left_out():
    records = [{"step": 1, "lr": float("nan")}, {"step": 2, "lr": None}, {"step": 3, "lr": 0.5}]
    assert list(plot_curves("lr", "Rate", records, [], "lr").figure.data[0].x) == [3]


def test_description_tells_first_and_last_values():
    plot = plot_curves("loss", "Loss", RECORDS[:500], [], "mlm_loss", line=("guessing", 6.5), resumed=[40])
    assert plot.description == (
        "Loss: training from 9.99 at step 1 to 5 at step 500; guessing: 6.5; resumed at step 40."
    )


def test_loss_is_drawn_with_the_entropy_of_the_targets(finished_run):
    loss = learning_plots(load_run(finished_run))[0].figure
    level = next(trace for trace in loss.data if trace.name == "best without context")
    assert list(level.y) == [6.6012, 6.6012]


def test_entropy_of_the_training_text_serves_until_the_evaluation(finished_run):
    (finished_run / "evaluate" / "mlm.json").unlink()
    run = load_run(finished_run)
    assert learning_plots(run)[0].figure.data[2].y[0] == pytest.approx(run.training_entropy)


def test_every_plot_of_a_whole_run_is_there(finished_run):
    run = load_run(finished_run)
    names = [plot.name for plot in (*learning_plots(run), *plot_bands(run), *stage_plots(run))]
    expected = "mlm-loss mlm-accuracy nsp-accuracy learning-rate throughput bands stage-time stage-bytes"
    assert names == expected.split()


def test_training_without_next_sentences_has_no_plot_of_them(young_run):
    text = (young_run / "pretrain" / "metrics.jsonl").read_text().replace("nsp_accuracy", "nothing")
    (young_run / "pretrain" / "metrics.jsonl").write_text(text)
    assert "nsp-accuracy" not in [plot.name for plot in learning_plots(load_run(young_run))]
