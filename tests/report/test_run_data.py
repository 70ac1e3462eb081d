import json

import pytest

from kexue_train.foundation.errors import ArtifactError
from kexue_train.pipeline.stages import STAGES
from kexue_train.report.run_data import load_run, read_stage_records
from tests.report.example_run import metric_lines, write_metrics


def test_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 1}\n{"kind": "train", "st')
    assert read_stage_records(path) == [{"kind": "train", "step": 1}]


def test_lines_of_no_training_are_a_problem_that_names_the_file(young_run):
    path = young_run / "pretrain" / "metrics.jsonl"
    path.write_bytes(b"\xff\xfe garbage\n" + path.read_bytes() + b'{"epoch": 1, "loss": 2.0}\n')
    run = load_run(young_run)
    assert run.problems == [f"{path}: 2 lines are not from a training and ignored (the first: not JSON)"]
    assert len(run.curve("train")) == 30


def test_missing_file_has_no_lines(tmp_path):
    assert read_stage_records(tmp_path / "metrics.jsonl") == []


def test_steps_repeated_after_a_resume_count_once_with_the_last_writing(young_run):
    again = [{"kind": "train", "step": 300, "mlm_loss": 1.0}]
    write_metrics(young_run, [*metric_lines(400), {"kind": "resume", "step": 290}, *again])
    curve = load_run(young_run).curve("train")
    assert [record["step"] for record in curve] == list(range(10, 401, 10))
    assert curve[29]["mlm_loss"] == 1.0


def test_work_found_later_does_not_hide_the_time_it_took(finished_run):
    with (finished_run / "stages.jsonl").open("a") as file:
        file.write(json.dumps({"stage": "samples", "seconds": 0.01, "status": "found"}) + "\n")
    stages = {record["stage"]: record["seconds"] for record in load_run(finished_run).stages}
    assert stages["samples"] == 21


def test_stages_come_in_the_order_of_the_data(finished_run):
    path = finished_run / "stages.jsonl"
    path.write_text("\n".join(reversed(path.read_text().splitlines())))
    names = [record["stage"] for record in load_run(finished_run, STAGES).stages]
    assert names == ["corpus", "shuffle", "tokenizer", "samples", "train", "export", "evaluate"]


def test_damaged_manifest_is_a_problem_not_an_end(finished_run):
    (finished_run / "samples" / "manifest.json").write_text("{")
    run = load_run(finished_run)
    assert "samples" not in run.manifests
    assert "the manifest is damaged" in run.problems[0]


def test_folder_without_configuration_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"no config\.yaml"):
        load_run(tmp_path)
