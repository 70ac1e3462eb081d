"""What a person sees at the end: a run in a few lines, an evaluation as tables."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kexue_train.cli.terminal import open_console
from kexue_train.downstream.results.result import EvaluationResult, ResultTable
from kexue_train.foundation.json_logs import PROGRESS, wants_json
from kexue_train.foundation.runtime import format_seconds
from kexue_train.report.summary import summarise


def print_ending(run_dir: Path, console: Console) -> None:
    """Say what a run made, where, how good it is, and what to try next."""
    lines = _describe(run_dir)
    if wants_json():
        PROGRESS.info("%s", "\n".join(lines))
        return
    console.print()
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _describe(run_dir: Path) -> list[str]:
    summary = summarise(run_dir)
    return [
        f"{summary.name}: {summary.state} in {format_seconds(summary.seconds)}. {summary.model}",
        summary.quality,
        *([summary.losses] if summary.losses else []),
        f"report  {run_dir / 'report' / 'index.html'}",
        f"model   {run_dir / 'hf'}",
        "",
        "Try it:",
        *summary.snippet.splitlines(),
    ]


def print_table(entry: ResultTable, console: Console) -> None:
    """Show one table under its caption."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    for number, title in enumerate(entry.header):
        table.add_column(title, justify="left" if number == 0 else "right")
    for row in entry.rows:
        table.add_row(*map(escape, row))
    console.print(entry.caption, markup=False)
    console.print(table)


def print_tables(result: EvaluationResult, ending: str) -> None:
    """Show the tables and notes of an evaluation, and ``ending``."""
    console = open_console(highlight=False)
    for entry in result.tables():
        print_table(entry, console)
    for note in [*result.notes(), ending]:
        console.print(note, markup=False, soft_wrap=True)
