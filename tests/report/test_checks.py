import json

from kexue_train.report.checks import check_run
from kexue_train.report.run_data import load_run


def edit_manifest(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def failures(run_dir):
    return [check.evidence for check in check_run(load_run(run_dir)) if not check.passed]


def test_a_whole_run_passes_every_check(finished_run):
    checks = check_run(load_run(finished_run))
    assert len(checks) == 7
    assert all(check.passed for check in checks)


def test_a_lost_row_is_found(finished_run):
    edit_manifest(finished_run / "shards", rows_checksum={"input": "2a".zfill(32), "output": "29".zfill(32)})
    assert any("29 out" in evidence for evidence in failures(finished_run))


def test_a_trace_of_the_inputs_order_is_found(finished_run):
    worst = {"shard": 1, "chi_square": 100.0, "degrees_of_freedom": 1}
    statistics = {
        "rank_correlation": {"coefficient": 0.05, "standard_deviation": 0.007},
        "source_mixing": {"chi_square": 200.0, "degrees_of_freedom": 4, "worst_shard": worst},
    }
    edit_manifest(finished_run / "shards", statistics=statistics)
    correlation, mixing = failures(finished_run)
    assert correlation == "correlation of input and output order: +0.05000; by chance within ±0.01400"
    assert mixing.startswith("chi-square 200.0 (4 ± 5.7 by chance); in shard 1, the most uneven, 100.0 (1 ± 2.8")


def test_a_file_of_another_size_is_found(finished_run):
    (finished_run / "shards" / "data.txt").write_text("short")
    assert any("has 5 bytes" in evidence for evidence in failures(finished_run))


def test_a_part_made_from_another_parent_is_found(finished_run):
    edit_manifest(finished_run / "evaluate", parents={"hf_model": "sha256:other"})
    assert failures(finished_run) == ["evaluate was made from another hf_model"]


def test_a_loss_that_is_not_finite_is_found(finished_run):
    with (finished_run / "pretrain" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 1010, "mlm_loss": NaN}\n')
    assert failures(finished_run) == ["not finite at step 1010"]


def test_an_export_that_differs_is_found(finished_run):
    statistics = {"max_logit_difference": 0.5}
    edit_manifest(finished_run / "hf", statistics=statistics)
    assert failures(finished_run) == ["largest difference of a logit after reloading: 0.5"]
