"""From the figures of single runs to tables, for the terminal and for RESULTS.md."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Measured
from kexue_train.foundation.runtime import format_size

BASELINES = ("terashuf", "dd")


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one tool on one corpus."""

    kind: str
    tool: str
    title: str
    place: str
    """File system and page cache."""
    round: int
    memory: int
    """Bytes the tool was told to use."""
    input_bytes: int
    input_rows: int
    command: str
    measured: Measured

    @property
    def megabytes_per_second(self) -> float:
        """Of input."""
        return self.input_bytes / 1e6 / self.measured.seconds


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its title and the cell of a group of runs; ``runs`` holds all runs on that corpus."""

    title: str
    cell: Callable[[Sequence[Run], Sequence[Run]], str]


@dataclass(frozen=True, slots=True)
class View:
    """A way to look at runs: those with the same key are a row."""

    title: str
    columns: list[Column]
    key: Callable[[Run], Any]


def median_ratio(runs: Sequence[Run], group: Sequence[Run], baseline: str) -> float | None:
    """How many times as fast as ``baseline`` the runs of ``group`` were: the median over rounds that have both."""
    base = {run.round: run.measured.seconds for run in runs if run.tool == baseline and not run.measured.error}
    ratios = [base[run.round] / run.measured.seconds for run in group if run.round in base]
    return statistics.median(ratios) if ratios else None


def comparison() -> View:
    """Tools side by side."""
    columns = [
        Column("tool", lambda _, group: group[0].title),
        Column("MB/s", lambda _, group: spread([run.megabytes_per_second for run in group])),
        *(Column(f"× {baseline}", _ratio_cell(baseline)) for baseline in BASELINES),
        *_resource_columns(),
    ]
    return View("shuffle", columns, lambda run: run.tool)


def memory_sweep() -> View:
    """One tool, several memory limits."""
    columns = [
        Column("limit", lambda _, group: format_size(group[0].memory)),
        Column("MB/s", lambda _, group: spread([run.megabytes_per_second for run in group])),
        Column("PSS ÷ limit", lambda _, group: f"{_peak(group, 'peak_pss') / group[0].memory:.2f}"),
        Column("RSS ÷ limit", lambda _, group: f"{_peak(group, 'peak_rss') / group[0].memory:.2f}"),
        *_resource_columns(),
    ]
    return View("memory sweep", columns, lambda run: run.memory)


def soak() -> View:
    """One tool, several sizes of input."""
    columns = [
        Column("input", lambda _, group: format_size(group[0].input_bytes)),
        Column("s", lambda _, group: spread([run.measured.seconds for run in group])),
        Column("s/GB", lambda _, group: f"{_seconds_per_gigabyte(group):.2f}"),
        Column("÷ smallest", _relative_cost),
        *_resource_columns(),
    ]
    return View("soak", columns, lambda run: run.input_bytes)


def make_rows(runs: Sequence[Run], columns: Sequence[Column], key: Callable[[Run], Any]) -> list[list[str]]:
    """Cells: one row for each group of successful runs with the same ``key``, in order of appearance."""
    good = [run for run in runs if not run.measured.error]
    groups = [[run for run in good if key(run) == value] for value in dict.fromkeys(map(key, good))]
    return [[column.cell(good, group) for column in columns] for group in groups]


def rich_table(title: str, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> Table:
    """For the terminal."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column.title, justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    return table


def markdown_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    """For RESULTS.md."""
    lines = [[column.title for column in columns], ["---"] * len(columns)]
    lines += [[cell.replace("|", r"\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def report(facts: dict[str, Any], runs: Sequence[Run], view: View, as_markdown: bool) -> None:
    """Print the tables, one for each kind of corpus."""
    if as_markdown:
        print(_markdown_head(facts, runs, view.title))
    for kind, place in dict.fromkeys((run.kind, run.place) for run in runs):
        of_kind = [run for run in runs if (run.kind, run.place) == (kind, place)]
        rows = make_rows(of_kind, view.columns, view.key)
        heading = f"{kind}, {format_size(max(run.input_bytes for run in of_kind))}, {place}"
        if as_markdown:
            print(f"\n{heading}:\n\n{markdown_table(view.columns, rows)}\n")
        else:
            console = Console() if sys.stdout.isatty() else Console(width=160)
            console.print(rich_table(f"{view.title}: {heading}", view.columns, rows))
        for run in of_kind:
            if run.measured.error:
                print(f"Failed: {run.title}, {format_size(run.memory)}, round {run.round + 1}: {run.measured.error}")


def _markdown_head(facts: dict[str, Any], runs: Sequence[Run], title: str) -> str:
    machine, loads = facts["machine"], [run.measured.load_before for run in runs] or [0.0]
    corpora = ", ".join(f"{c['kind']} {c['mean_line_bytes']:.0f} B, {c['lz4_ratio']:.2f}×" for c in facts["corpora"])
    left_out = "; ".join(f"{name}: {reason}" for name, reason in facts["left_out"].items())
    memory = format_size(machine["memory_bytes"])
    page_cache = ", ".join(f"{place}: {state}" for place, state in facts.get("page_cache", {}).items())
    head = [
        f"## {facts['date'][:10]}, {title}, {machine['cpus']} cores ({machine['cpu']}), {memory}\n",
        f"`{facts['command']}`. Kernel {machine['kernel']}, {machine['file_system']}. Before each run:",
        f"{page_cache}; load average then {min(loads):.1f} to {max(loads):.1f}. MB/s of input, the",
        "final `sync` included: median [min–max]; × is the median of the ratios within a round; memory is that of all",
        "processes together, the largest sample; written and peak disk are times the input. Mean line and lz4 ratio:",
        f"{corpora}.",
    ]
    return "\n".join([*head, f"Left out: {left_out}."] if left_out else head)


def spread(values: Sequence[float]) -> str:
    """Median and, of several values, the least and the greatest."""
    ends = f" [{_short(min(values))}–{_short(max(values))}]" if len(values) > 1 else ""
    return _short(statistics.median(values)) + ends


def _resource_columns() -> list[Column]:
    return [
        Column("peak PSS, MB", lambda _, group: f"{_peak(group, 'peak_pss') / 1e6:.0f}"),
        Column("peak RSS, MB", lambda _, group: f"{_peak(group, 'peak_rss') / 1e6:.0f}"),
        Column(
            "CPU, s/GB", lambda _, group: spread([run.measured.cpu_seconds * 1e9 / run.input_bytes for run in group])
        ),
        Column("written", lambda _, group: _of_input(group, [run.measured.written for run in group])),
        Column("peak disk", lambda _, group: _of_input(group, [run.measured.peak_disk for run in group])),
    ]


def _ratio_cell(baseline: str) -> Callable[[Sequence[Run], Sequence[Run]], str]:
    def cell(runs: Sequence[Run], group: Sequence[Run]) -> str:
        ratio = median_ratio(runs, group, baseline)
        return "–" if ratio is None else f"{ratio:.2f}"

    return cell


def _relative_cost(runs: Sequence[Run], group: Sequence[Run]) -> str:
    least = min(run.input_bytes for run in runs)
    smallest = [run for run in runs if run.input_bytes == least and not run.measured.error]
    return f"{_seconds_per_gigabyte(group) / _seconds_per_gigabyte(smallest):.2f}" if smallest else "–"


def _seconds_per_gigabyte(group: Sequence[Run]) -> float:
    return statistics.median(run.measured.seconds * 1e9 / run.input_bytes for run in group)


def _of_input(group: Sequence[Run], values: Sequence[int]) -> str:
    return f"{statistics.median(values) / group[0].input_bytes:.2f}×"


def _peak(group: Sequence[Run], name: str) -> int:
    return max(getattr(run.measured, name) for run in group)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 20 else f"{value:.1f}"
