"""In which scripts the corpus is written, as a table of the report."""

from __future__ import annotations

from typing import Any

from kexue_train.metrics.fields import EMPTY
from kexue_train.report.run_data import RunData
from kexue_train.report.tables import Table

_SHOWN = 12


def script_tables(run: RunData) -> list[Table]:
    """Return the table; none for shards of old releases, or without letters."""
    found: dict[str, Any] = run.manifests["shards"].statistics.get("scripts", {}) if "shards" in run.manifests else {}
    shares = found.get("shares", {})
    if not shares:
        return []
    columns = {"all": shares} | found.get("by_source", {})
    rows = [
        [script, *(f"{own[script]:.1%}" if script in own else EMPTY for own in columns.values())]
        for script in list(shares)[:_SHOWN]
    ]
    note = f"Shares of letters in the first {found['documents']:,} documents of the shards, which are a uniform sample."
    return [Table("Letters by script", ["Script", *columns], rows, notes=[note], wide=len(columns) > 3)]
