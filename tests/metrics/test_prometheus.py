"""What Prometheus reads of runs is what their folders say, while they change."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kexue_train.foundation.errors import ArtifactError, ResourceError
from kexue_train.metrics.fields import LINES, Kind, Metric
from kexue_train.metrics.prometheus import RunCollector, read_figures, serve

DASHBOARD = Path(__file__).parents[2] / "cluster" / "grafana" / "dashboard.json"
LINE = {metric.key: number + 0.5 for number, metric in enumerate(LINES[Kind.TRAIN]) if isinstance(metric, Metric)}


def add_lines(folder: Path, *records: dict[str, object]) -> None:
    """Append lines to the metrics of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def make_run(folder: Path) -> Path:
    """A run in the middle of its training."""
    folder.mkdir(parents=True)
    (folder / ".run").write_text(folder.name)
    (folder / "stages.jsonl").write_text(
        '{"stage": "shuffle", "seconds": 4.5, "rows": 10, "bytes": 100}\n'
        '{"stage": "shuffle", "seconds": 1.5, "rows": 20, "bytes": 200}\n'
        '{"stage": "tok'
    )
    add_lines(
        folder / "pretrain",
        {"kind": "start", "step": 0, "time": 1},
        {"kind": "train", "step": 10} | LINE | {"loss": 9.5},
        {"kind": "validation", "step": 10, "mlm_loss": 7.25},
        {"kind": "warning", "step": 15, "symptom": "slow", "message": "x"},
        {"kind": "train", "step": 20} | LINE | {"loss": float("nan")},
    )
    return folder


def figures(root: Path) -> dict[tuple[str, ...], float]:
    """All samples by name and labels."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in RunCollector(root).collect()
        for sample in family.samples
    }


def test_the_newest_line_every_stage_and_every_event_are_served(tmp_path: Path) -> None:
    make_run(tmp_path / "demo")
    found = figures(tmp_path)
    assert found["kexue_training_step", "demo", "train"] == 20
    for key, value in LINE.items():
        assert key == "loss" or found[f"kexue_training_{key}", "demo", "train"] == value
    assert str(found["kexue_training_loss", "demo", "train"]) == "nan"
    assert found["kexue_validation_mlm_loss", "demo", "train"] == 7.25
    assert found["kexue_training_events_total", "demo", "train", "warning"] == 1
    assert found["kexue_stage_seconds", "demo", "shuffle"] == 1.5
    assert found["kexue_stage_rows", "demo", "shuffle"] == 20
    assert not any("tok" in part for key in found for part in key[1:])


def test_the_same_figures_are_printed_once_as_json(tmp_path: Path) -> None:
    make_run(tmp_path / "demo")
    found = read_figures(tmp_path)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    expected = figures(tmp_path)
    values = {
        (entry["name"], *[v for k, v in entry.items() if k not in ("name", "value")]): entry["value"] for entry in found
    }
    assert values.keys() == expected.keys()
    assert all(value == expected[key] for key, value in values.items() if value is not None)
    assert [key[0] for key, value in values.items() if value is None] == ["kexue_training_loss"]


def test_lines_that_come_later_or_are_taken_back_count(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo")
    collector = RunCollector(tmp_path)

    def steps() -> list[float]:
        return [s.value for f in collector.collect() if f.name == "kexue_training_step" for s in f.samples]

    assert steps() == [20]
    add_lines(run / "pretrain", {"kind": "train", "step": 30})
    assert steps() == [30]
    path = run / "pretrain" / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    assert steps() == [10]
    path.unlink()
    assert steps() == []


def test_generations_second_stages_and_later_runs_are_found(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo")
    make_run(run / "generations" / "2")
    add_lines(run / "supervised", {"kind": "train", "step": 5})
    (tmp_path / "notes").mkdir()
    found = {key[1:] for key in figures(tmp_path) if key[0] == "kexue_training_step"}
    assert found == {("demo", "train"), ("demo", "supervise"), ("demo/generations/2", "train")}
    assert figures(run).keys() >= {("kexue_training_step", "demo", "train")}
    assert figures(tmp_path / "notes") == {}


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Where the command serves a run with a name that needs escapes."""
    make_run(tmp_path / 'de"m\\o')
    command = [sys.executable, "-m", "kexue_train", "metrics", str(tmp_path), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    yield process.stdout.readline().split()[0]
    process.terminate()
    process.wait()
    process.stdout.close()


def test_the_command_serves_what_prometheus_parses(address: str) -> None:
    with urllib.request.urlopen(address) as answer:
        families = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
    assert address.startswith("http://127.0.0.1:")
    assert families["kexue_training_step"].samples[0].labels == {"run": 'de"m\\o', "stage": "train"}
    assert families["kexue_training_events"].type == "counter"


def test_a_taken_port_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    port = int(serve(tmp_path, "127.0.0.1", 0).split(":")[2].partition("/")[0])
    with pytest.raises(ResourceError, match=f"--port {port}: cannot listen"):
        serve(tmp_path, "127.0.0.1", port)
    with pytest.raises(ArtifactError, match="is not a folder"):
        serve(tmp_path / "nowhere", "127.0.0.1", 0)


def test_the_dashboard_asks_for_served_names_only(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo")
    numbers = {metric.key: 1 for metric in LINES[Kind.VALIDATION] if isinstance(metric, Metric)}
    add_lines(run / "pretrain", {"kind": "validation", "step": 30} | numbers)
    asked = set(re.findall(r"kexue_(?:training|validation|stage)_\w+", DASHBOARD.read_text()))
    assert len(asked) > 10
    assert asked <= {key[0] for key in figures(tmp_path)}
