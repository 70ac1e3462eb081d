"""A plan as a table for people and as plain values for programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kexue_train.foundation.runtime import format_seconds, format_size
from kexue_train.pipeline.plan.plan_run import RunPlan

_UNKNOWN = "?"


def print_plan(plan: RunPlan, console: Console) -> None:
    """One line per stage, a line of sums, and where the estimates come from."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("stage")
    for title in ("tasks", "disk", "more at its peak", "memory", "each GPU", "time"):
        table.add_column(title, justify="right")
    for stage in plan.stages:
        table.add_row(
            stage.stage,
            f"{stage.tasks:,}",
            _or(format_size, stage.disk_bytes or None, ""),
            _or(format_size, stage.scratch_bytes or None, ""),
            _or(format_size, stage.memory_bytes, ""),
            _or(format_size, stage.device_bytes, ""),
            _or(format_seconds, stage.seconds, _UNKNOWN),
        )
    totals = (format_size(plan.disk_bytes), "", format_size(plan.memory_bytes), "", _or(format_seconds, plan.seconds))
    table.add_row("all", "", *totals, style="bold")
    console.print(table)
    console.print(
        f"\nAt the peak {format_size(plan.peak_disk_bytes)} of disk, for {format_size(plan.text_bytes)} of text."
    )
    console.print("Estimates, from what benchmarks/RESULTS.md measured:")
    for stage in plan.stages:
        console.print(f"  {stage.stage}: {escape(stage.basis)}", highlight=False)


def plan_values(plan: RunPlan) -> dict[str, Any]:
    """Bytes and seconds; null for what is not known."""
    sums = {name: getattr(plan, name) for name in ("disk_bytes", "peak_disk_bytes", "memory_bytes", "seconds")}
    return {"text_bytes": plan.text_bytes, "stages": [asdict(stage) for stage in plan.stages]} | sums


def _or(show: Callable[[float], str], value: float | None, missing: str = _UNKNOWN) -> str:
    return missing if value is None else show(value)
