"""Outcomes as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from claims.claim import Claim
from claims.run_claims import Outcome
from claims.verdict import Spread

_STYLES = {"confirmed": "green", "refuted": "red", "undecidable here": "yellow", "crashed": "bold red"}


def describe_figures(claim: Claim, outcome: Outcome) -> str:
    """Return the figures that ``claim`` shows, as mean ± deviation over seeds, or why there are none."""
    if outcome.message:
        return outcome.message
    spreads = [f"{name} {Spread.of(outcome.figures[name])}" for name in claim.shown]
    return "; ".join(spreads) + f" {claim.unit}".rstrip()


def make_table(claims: Sequence[Claim], outcomes: Sequence[Outcome]) -> Table:
    """Return one row for each outcome, in the order of ``claims``."""
    table = Table("claim", "kexue.fm", "figures ± over seeds", "verdict", "s", title="Claims of the blog, measured")
    by_name = {outcome.name: outcome for outcome in outcomes}
    for claim in claims:
        if outcome := by_name.get(claim.name):
            style = _STYLES.get(outcome.status, "dim")
            verdict = f"[{style}]{outcome.status}[/{style}]"
            figures = describe_figures(claim, outcome)
            table.add_row(claim.name, str(claim.source), figures, verdict, f"{outcome.seconds:.1f}")
    return table
