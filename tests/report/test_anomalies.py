import json

import pytest

from kexue_train.metrics.fields import head_metrics
from kexue_train.metrics.heads import HEADS
from kexue_train.report.anomalies import find_anomalies, loss_spikes
from kexue_train.report.run_data import load_run
from tests.report.example_run import metric_lines, write_metrics


def found_in(run_dir):
    return {anomaly.what: anomaly.details for anomaly in find_anomalies(load_run(run_dir))}


MLM_LOSS, _ = head_metrics(HEADS[0])


def losses(*values):
    return [{"step": step, "mlm_loss": value} for step, value in enumerate(values, 1)]


def test_an_ordinary_run_has_only_its_resume(finished_run):
    assert found_in(finished_run) == {
        "Training was resumed 1 time": "at step 430, from the checkpoint there; a resume repeats no row and skips none"
    }


def test_everything_that_happened_is_told_with_warnings_first(eventful_run):
    anomalies = find_anomalies(load_run(eventful_run))
    severities = [anomaly.severity for anomaly in anomalies]
    assert severities == sorted(severities, reverse=True)
    assert {anomaly.what for anomaly in anomalies} == {
        "Training rolled back to step 400 after a loss spike",
        "Gradients were not finite",
        "Training warned of “loader”",
        "A checkpoint could not be written",
        "3 records were rejected in shards",
        "tnews has no score in zero_shot",
        "Training was resumed 1 time",
        "41 records were left out in shards",
    }


def test_details_name_steps_and_reasons(eventful_run):
    found = found_in(eventful_run)
    assert (
        "the loss of step 412 was nan, the usual loss 5.1;"
        in found["Training rolled back to step 400 after a loss spike"]
    )
    assert "at step 600; the last reason: No space left on device" in found["A checkpoint could not be written"]
    assert found["3 records were rejected in shards"] == "3 not valid UTF-8"
    assert found["Training was resumed 1 time"].startswith("at step 700")


def test_a_loss_far_above_the_median_is_a_spike():
    assert loss_spikes(losses(*[5.0, 5.1] * 8, 9.0, 5.0, 5.05, 8.0), MLM_LOSS) == [17, 20]


def test_falling_and_noisy_losses_are_none():
    assert loss_spikes([r for r in metric_lines(1000) if r["kind"] == "train"], MLM_LOSS) == []


def test_a_rise_of_less_than_a_tenth_is_none_however_quiet_it_was():
    assert loss_spikes(losses(*[5.0] * 20, 5.4), MLM_LOSS) == []
    assert loss_spikes(losses(*[5.0] * 20, 5.6), MLM_LOSS) == [21]


def test_rows_of_another_length_are_not_compared_with_those_before():
    jump = losses(*[5.0] * 20, *[8.0] * 20)
    assert loss_spikes(jump, MLM_LOSS)[0] == 21
    assert loss_spikes(jump, MLM_LOSS, borders=[20]) == []


def test_losses_that_are_not_finite_do_not_count_as_usual():
    assert loss_spikes(losses(*[5.0] * 10, float("nan"), float("inf"), *[5.0] * 10), MLM_LOSS) == []


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"embedding_max": float("nan")}, "The word table holds values that are not finite"),
        ({"embedding_max": 60.0, "embedding_drifted_rows": 0.02}, "2.00% of the rows of the word table have drifted"),
    ],
)
def test_a_word_table_out_of_bounds_is_told(young_run, values, what):
    write_metrics(young_run, [{"kind": "train", "step": 10, "mlm_loss": 5.0, **values}])
    assert what in found_in(young_run)


def test_a_vocabulary_that_does_not_fit_is_told(finished_run):
    path = finished_run / "samples" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["statistics"]["unknown_rate"] = 0.2
    path.write_text(json.dumps(manifest))
    assert "20.0% of the tokens are unknown" in found_in(finished_run)


def test_many_steps_are_counted_not_listed(young_run):
    write_metrics(young_run, [{"kind": "warning", "step": s, "symptom": "slow", "message": "m"} for s in range(1, 20)])
    assert found_in(young_run) == {"Training warned of “slow”": "at steps 1, 2, 3, 4, 5, 6 and 13 more: m"}
