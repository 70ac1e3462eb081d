from __future__ import annotations

from types import SimpleNamespace

import pytest

from kexue_train.report.sources import source_chart, source_tables

ENTRY = {
    "weight": 2.5,
    "files": 1,
    "input_documents": 1000,
    "blank": 0,
    "rejected": {"NUL byte": 1},
    "dropped": {"shorter than min_chars": 2},
    "offered": 3000,
    "duplicates": 4,
    "near_duplicates": 5,
    "sampled_out": 500,
    "documents": 2491,
    "text_bytes": 9_000_000,
    "share": 0.9,
}


def run_with(shards, samples=None, lines=()):
    manifests = {"shards": SimpleNamespace(statistics=shards)}
    if samples is not None:
        manifests["samples"] = SimpleNamespace(statistics=samples)
    return SimpleNamespace(
        manifests=manifests, of_kind=lambda *kinds: [line for line in lines if line["kind"] in kinds]
    )


def line(step, name, loss):
    return {"kind": "source", "step": step, "source": name, "source_loss": loss, "source_accuracy": 0.25}


def test_a_row_tells_what_became_of_a_source_and_how_well_it_is_learnt():
    lines = [line(10, "web", 7.0), line(20, "web", 5.5), line(20, "web", 5.25)]
    run = run_with(
        {"sources": {"web": ENTRY}}, {"sources": {"web": {"document_tokens": 12345, "heldout_tokens": 99}}}, lines
    )
    (table,) = source_tables(run)
    assert table.rows == [
        ["web", "2.5", "1,000", "3", "9", "500", "2,491", "9 MB", "90.0%", "12,345", "99", "7", "5.25", "25.0%"]
    ]
    assert len(table.header) == len(table.rows[0])


def test_the_largest_sources_have_a_curve_each():
    names = [f"s{number}" for number in range(9)]
    shards = {"sources": {name: ENTRY | {"share": number / 36} for number, name in enumerate(names)}}
    chart = source_chart(run_with(shards, lines=[line(step, name, 4.0) for step in (1, 2) for name in names]))
    assert chart is not None
    assert [curve.label for curve in chart.curves] == ["s8", "s7", "s6", "s5", "s4", "s3"]


@pytest.mark.parametrize("shards", [{}, {"sources": {"web": ENTRY}}])
def test_before_training_there_is_no_curve(shards):
    run = run_with(shards)
    assert source_chart(run) is None
    assert len(source_tables(run)) == len(shards)
    assert all(table.rows[0][-3:] == ["–", "–", "–"] for table in source_tables(run))
