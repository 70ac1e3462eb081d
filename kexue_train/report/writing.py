"""In which scripts and languages the corpus is written, as tables of the report."""

from __future__ import annotations

from typing import Any

from kexue_train.metrics.fields import EMPTY
from kexue_train.report.run_data import RunData
from kexue_train.report.tables import Table

_SHOWN = 12


def writing_tables(run: RunData) -> list[Table]:
    """Return a table of scripts and one of languages, each if it was measured."""
    statistics = run.manifests["shards"].statistics if "shards" in run.manifests else {}
    tables = []
    if scripts := statistics.get("scripts"):
        tables.append(_table("Letters by script", "Script", "letters", scripts))
    if languages := statistics.get("languages"):
        what = f"text, by the guess of {languages['identifier']} for each document,"
        tables.append(_table("Text by language", "Language", what, languages))
    return [table for table in tables if table.rows]


def _table(caption: str, name: str, what: str, found: dict[str, Any]) -> Table:
    columns = {"all": found["shares"]} | found.get("by_source", {})
    rows = [
        [entry, *(f"{own[entry]:.1%}" if entry in own else EMPTY for own in columns.values())]
        for entry in list(found["shares"])[:_SHOWN]
    ]
    note = f"Shares of {what} in the first {found['documents']:,} documents of the shards, which are a uniform sample."
    return Table(caption, [name, *columns], rows, notes=[note], wide=len(columns) > 3)
