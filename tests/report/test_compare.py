import json
import shutil

from kexue_train.report.compare import differing_settings, labels_of, overlaid_charts, overview_table, result_rows
from kexue_train.report.run_data import load_run


def test_equal_names_are_told_apart_by_their_folders(finished_run, young_run, tmp_path):
    again = shutil.copytree(finished_run, tmp_path / "elsewhere" / "demo")
    runs = [load_run(folder) for folder in (finished_run, again, young_run)]
    assert labels_of(runs) == ["demo (runs/demo)", "demo (elsewhere/demo)", "young"]


def test_the_better_of_each_row_is_marked(finished_run, eventful_run):
    path = eventful_run / "evaluate" / "mlm.json"
    scores = json.loads(path.read_text())
    path.write_text(
        json.dumps({**scores, "hidden_only": {**scores["hidden_only"], "mlm_loss": 4.0}, "nsp_accuracy": 0.6})
    )
    rows = {row.name: row.cells for row in result_rows([load_run(finished_run), load_run(eventful_run)])}
    loss = rows["held-out text: loss on hidden tokens (nats)"]
    assert [(cell.text, cell.is_best) for cell in loss] == [("4.903", False), ("4.000", True)]
    assert [cell.is_best for cell in rows["held-out text: next-sentence accuracy"]] == [True, False]
    assert [cell.text for cell in rows["bustm: zero-shot accuracy, NSP"]] == ["–", "53.0%"]


def test_equal_results_have_no_best(finished_run, tmp_path):
    again = shutil.copytree(finished_run, tmp_path / "again")
    rows = result_rows([load_run(finished_run), load_run(again)])
    assert not any(cell.is_best for row in rows for cell in row.cells)


def test_only_differing_settings_are_listed(finished_run, young_run):
    (young_run / "config.yaml").write_text("name: young\nseed: 1\nmodel: {num_hidden_layers: 4, hidden_size: 256}\n")
    runs = [load_run(finished_run), load_run(young_run)]
    assert differing_settings(runs, ["a", "b"]).rows == [
        ["seed", "0", "1"],
        ["corpus.source", "installed_docs", "not there"],
        ["train.steps", "1000", "not there"],
    ]
    assert differing_settings([runs[0], runs[0]], ["a", "b"]) is None


def test_curves_of_all_runs_lie_on_one_chart(finished_run, young_run):
    charts = {c.name: c for c in overlaid_charts([load_run(finished_run), load_run(young_run)], ["long", "short"])}
    assert [(curve.label, curve.colour) for curve in charts["validation-loss"].curves] == [("long", 1), ("short", 2)]
    assert charts["loss-by-tokens"].x_ticks[-1].label == "16 M"
    assert "at hours 0.0258333" in charts["loss-by-time"].description  # step 300, 0.31 seconds each


def test_a_run_without_metrics_takes_part(finished_run, tmp_path):
    (tmp_path / "config.yaml").write_text("name: new\n")
    runs = [load_run(tmp_path), load_run(finished_run)]
    assert [curve.label for curve in overlaid_charts(runs, ["new", "old"])[0].curves] == ["old"]
    assert overview_table(runs, ["new", "old"]).rows[0][1] == "in progress, nothing finished yet"
