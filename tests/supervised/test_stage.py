"""The stage in a run: made once, found complete, undone by its inputs and settings, exported without its heads."""

from __future__ import annotations

import shutil

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from kexue_train.cli.app import app
from kexue_train.foundation.artifacts import read_manifest
from kexue_train.foundation.errors import ConfigError, EvaluationError
from kexue_train.foundation.progress import SILENT, Silent
from kexue_train.foundation.run_dir import RunDir
from kexue_train.pipeline.run import Run, open_run, run_stage
from kexue_train.pipeline.run_config import RunConfig
from kexue_train.pipeline.stages import EXPORT, SUPERVISE, TRAIN, stages_of
from kexue_train.report.build_report import build_report
from kexue_train.report.run_data import load_run
from kexue_train.report.tables import labelled_task_table, missing_stages
from kexue_train.supervised.needs import RowsDir
from kexue_train.supervised.prepare import read_contamination
from tests.supervised.tiny_tasks import write_tasks
from tests.train.tiny_training import MODEL


class Notes(Silent):
    def __init__(self):
        self.messages = []

    def note(self, message):
        self.messages.append(message)


def values(tasks, **changes):
    section = {
        "data": str(tasks),
        "tasks": [str(tasks / "tasks.yaml")],
        "mix": {"mlm": 2, "sorted": 1, "asked": 1},
        "steps": 4,
        "weighting": {"scheme": "online"},
    }
    return {
        "name": "tiny",
        "seed": 7,
        "corpus": {"inputs": ["a.jsonl"]},
        "samples": {"seq_len": 32},
        "model": MODEL,
        "optimizer": {"lr": 2e-3, "schedule": {"2": 1.0}},
        "train": {
            "steps": 2,
            "global_batch_size": 8,
            "micro_batch_size": 2,
            "device": "cpu",
            "compute": {"engine": "torch"},
            "workers": {"launcher": "local", "threads_per_worker": 1},
            "checkpoints": {"every": 2},
        },
        "supervised": section | changes,
    }


def run_of(root, tasks, **changes):
    config = RunConfig.parse(values(tasks, **changes), where="test")
    return Run(config, RunDir(root))


@pytest.fixture(scope="module")
def own_tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def made(tmp_path_factory, samples, own_tasks):
    """A run folder up to its export."""
    root = tmp_path_factory.mktemp("made") / "run"
    root.mkdir()
    shutil.copytree(samples.parent / "shards", root / "shards")
    shutil.copytree(samples, root / "samples")
    run = run_of(root, own_tasks)
    run.folder.config.write_text(run.config.to_yaml())
    results = [run_stage(stage, run, SILENT) for stage in (TRAIN, SUPERVISE, EXPORT)]
    return root, results


def test_the_export_is_of_the_second_stage_and_has_no_heads(made):
    root, (_, supervised, _) = made
    assert supervised.summary.startswith("4 steps on labelled tasks (sorted, asked)")
    checkpoint = load_file(root / "supervised/checkpoints/step-00000004/model.safetensors")
    exported = load_file(root / "hf/model.safetensors")
    assert {name for name in checkpoint if name not in exported} == {
        f"task_heads.{task}_head.{part}" for task in ("sorted", "asked") for part in ("weight", "bias")
    }
    assert all((checkpoint[name] == exported[name]).all() for name in exported)
    assert read_manifest(root / "hf").statistics["steps"] == 4


def test_what_is_there_is_complete_and_changes_undo_it(made, own_tasks):
    root, _ = made
    assert run_of(root, own_tasks).is_complete(SUPERVISE)
    assert not run_stage(SUPERVISE, run_of(root, own_tasks), SILENT).made
    for change in ({"mix": {"mlm": 1, "sorted": 1}}, {"steps": 5}, {"lr": 1e-3}, {"weighting": {}}, {"max_train": 10}):
        assert not run_of(root, own_tasks, **change).is_complete(SUPERVISE), change


def test_rows_say_what_was_counted(made):
    root, _ = made
    rows = read_manifest(root / "supervised-rows/rows/asked")
    assert (rows.rows, rows.statistics["heldout_rows"], rows.statistics["refused"]) == (40, 10, {})
    assert {entry.task for entry in read_contamination(RowsDir(root / "supervised"))} == {"sorted", "asked"}


def test_a_run_without_the_section_has_no_such_stage(made, own_tasks):
    root, _ = made
    config = RunConfig.parse({**values(own_tasks), "supervised": None}, where="test")
    run = Run(config, RunDir(root))
    assert SUPERVISE not in stages_of(config)
    assert run.inputs_of(EXPORT) == (root / "pretrain",)
    assert run_of(root, own_tasks).inputs_of(EXPORT) == (root / "pretrain", root / "supervised")
    assert missing_stages(load_run(root, [TRAIN, SUPERVISE, EXPORT])) == []


def test_the_report_has_a_row_for_every_task(made):
    root, _ = made
    table = labelled_task_table(load_run(root))
    assert [row[:5] for row in table.rows] == [
        ["asked", "reading", "30", "0", "10"],
        ["sorted", "classification", "40", "0", "10"],
    ]
    assert all(float(row[6]) > 0 and row[7].endswith("%") and row[8].startswith("0 + 0 of ") for row in table.rows)
    page = build_report(root, [TRAIN, SUPERVISE, EXPORT]).read_text(encoding="utf-8")
    assert "Labelled tasks" in page


def test_the_command_does_the_same(made, own_tasks, tmp_path):
    root, _ = made
    (tmp_path / "run.yaml").write_text(run_of(root, own_tasks).config.to_yaml())
    out = tmp_path / "again"
    words = ["supervise", root / "pretrain", "--config", tmp_path / "run.yaml", "--samples", root / "samples",
             "--shards", root / "shards", "--out", out]  # fmt: skip
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    for name in ("model", "optimizer"):
        first, second = (load_file(folder / f"checkpoints/step-00000004/{name}.safetensors")
                         for folder in (root / "supervised", out))  # fmt: skip
        assert all((first[key] == second[key]).all() for key in first)


def test_missing_tasks_and_files_are_told_before_a_run_begins(tmp_path):
    tasks = write_tasks(tmp_path / "tasks")
    (tmp_path / "run").mkdir()
    open_run(RunConfig.parse(values(tasks), where="test"), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"there is no task 'sorte'.*; there is no task 'nope'"):
        open_run(
            RunConfig.parse(values(tasks, mix={"mlm": 1, "sorte": 1, "nope": 1}), where="test"), tmp_path / "other"
        )
    with pytest.raises(EvaluationError, match=r"(?s)sorted: .*cannot be read.*\nasked: .*supervised\.data"):
        open_run(RunConfig.parse(values(tasks, data=str(tmp_path / "nowhere")), where="test"), tmp_path / "other")
    assert not (tmp_path / "other").exists()
