"""A value of a training line is declared once: terminal, Prefect's table and report show it as the declaration says."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from kexue_train.cli.terminal import PlainBoard
from kexue_train.metrics.fields import LINES, Chart, Kind, Metric
from kexue_train.report.build_report import render_run
from kexue_train.report.run_data import load_run
from kexue_train.train.monitor.events import ProgressReporter, describe, metrics_table
from tests.report.example_run import metric_lines, write_metrics, write_young_run

HEAT = Metric("device_heat", "heat", "share", chart=Chart("device-heat", "speed", "Heat of the devices"), headline=True)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    monkeypatch.setitem(LINES, Kind.TRAIN, (*LINES[Kind.TRAIN], HEAT))
    return [{**line, "device_heat": 0.25} for line in metric_lines(300)]


def test_a_new_metric_is_in_the_report(lines: list[dict[str, Any]], tmp_path: Path) -> None:
    write_young_run(tmp_path / "run")
    write_metrics(tmp_path / "run", lines)
    page = render_run(load_run(tmp_path / "run"))
    assert 'id="device-heat"' in page
    assert "Heat of the devices: training from 25.0% at step 10 to 25.0% at step 300" in page


def test_a_new_metric_is_in_the_terminal_and_in_the_table(lines: list[dict[str, Any]]) -> None:
    text, clock = io.StringIO(), iter((0.0, *[20.0] * 9))
    board = PlainBoard(Console(file=text, width=60), lambda: next(clock))
    board.start("train")
    ProgressReporter(0, 300, board).report(lines)
    assert "  heat 25.0%" in text.getvalue()
    assert metrics_table(lines[1:2], rows=1)[0]["heat"] == "25.0%"


KEYS = sorted({field.key for fields in LINES.values() for field in fields} | {"time"})
VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([[], {}, {"a": None}])
)
RECORDS = st.fixed_dictionaries(
    {"kind": st.sampled_from([str(kind) for kind in Kind]), "step": st.integers(0, 50)},
    optional=dict.fromkeys(KEYS, VALUES),
)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(RECORDS, max_size=10))
def test_lines_with_values_of_any_type_break_neither_report_nor_terminal(
    tmp_path_factory: pytest.TempPathFactory, lines: list[dict[str, Any]]
) -> None:
    run_dir = write_young_run(tmp_path_factory.mktemp("run") / "run")
    write_metrics(run_dir, lines)
    run = load_run(run_dir)
    assert "</html>" in render_run(run)
    board = PlainBoard(Console(file=io.StringIO()))
    board.start("train")
    ProgressReporter(0, 50, board).report(run.metrics)
    assert all(describe(record) != "" for record in run.metrics)
    json.dumps(metrics_table(run.metrics, rows=5))
