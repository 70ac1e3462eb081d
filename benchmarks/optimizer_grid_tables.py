"""The tables of the grid: each cell, and how far Tiger is behind AdamW by its number of averaging times."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich.table import Table

from benchmarks.optimizer_grid import ADAMW, Settled
from benchmarks.optimizer_quality import mean_and_deviation


def cell_tables(settled: Sequence[Settled]) -> list[Table]:
    """Make a table for each cell: tuned rate, losses, the difference to AdamW by seed, processor seconds, bytes."""
    return [_cell_table([each for each in settled if each.cell == cell]) for cell in _cells(settled)]


def gaps(settled: Settled, everything: Sequence[Settled]) -> list[float]:
    """Return by how much its final loss is above AdamW's of the same cell, for every seed that both have."""
    bases = [other for other in everything if other.cell == settled.cell and other.rule == ADAMW]
    return [a - b for base in bases for a, b in zip(settled.finals, base.finals, strict=False)]


def gap_table(settled: Sequence[Settled]) -> Table:
    """Make the table of Tiger's difference to AdamW, by steps · (1 - β): how often its momentum is renewed."""
    table = Table("steps · (1 − β)", "β", "cell", "lr", "seeds", "beyond AdamW", title="Tiger beside AdamW, nats")
    tigers = [each for each in settled if each.rule.beta is not None and gaps(each, settled)]
    for each in sorted(tigers, key=_renewals):
        found = gaps(each, settled)
        table.add_row(
            f"{_renewals(each):.0f}", f"{each.rule.beta:g}", each.cell.title, f"{each.lr:g}", str(len(found)),
            mean_and_deviation(found, "+"),
        )  # fmt: skip
    return table


def _renewals(settled: Settled) -> float:
    return settled.cell.steps * (1 - (settled.rule.beta or 0))


def _cell_table(found: Sequence[Settled]) -> Table:
    points = [point[0] for point in found[0].outcomes[0]["curve"]]
    table = Table(
        "optimizer", "lr", "seeds", *(f"step {step}" for step in points), "beyond AdamW", "NSP %",
        "processor s", "bytes/param", "and gradient", title=f"{found[0].cell.title}: held-out loss, nats",
    )  # fmt: skip
    for each in found:
        outcomes = each.outcomes
        curves = [[point[1] for point in outcome["curve"]] for outcome in outcomes]
        parameters, states = outcomes[0]["parameters"], outcomes[0]["state_bytes"]
        table.add_row(
            each.rule.title, f"{each.lr:g}", str(len(outcomes)),
            *(f"{statistics.fmean(values):.3f}" for values in list(zip(*curves, strict=True))[:-1]),
            mean_and_deviation(each.finals),
            "" if each.rule == ADAMW or not gaps(each, found) else mean_and_deviation(gaps(each, found), "+"),
            f"{100 * statistics.fmean(outcome['curve'][-1][2] for outcome in outcomes):.0f}",
            f"{statistics.median(outcome['processor_seconds'] for outcome in outcomes):.0f}",
            f"{states / parameters:.1f}", f"{(states + outcomes[0]['gradient_bytes']) / parameters:.1f}",
        )  # fmt: skip
    return table


def _cells(settled: Sequence[Settled]) -> list[object]:
    return list(dict.fromkeys(each.cell for each in settled))
