"""What the evaluations found: tables for the page and the model card, and the scores that runs are compared by."""

from __future__ import annotations

from kexue_train.downstream.results.result import EvaluationResult, Headline, Score
from kexue_train.metrics.fields import EMPTY
from kexue_train.report.run_data import RunData
from kexue_train.report.tables import Table

_NARROW = 4  # columns


def evaluation_tables(run: RunData) -> list[Table]:
    """Return every table of results that there is, with baselines and published rows."""
    return [table for result in run.results.values() for table in _tables_of(result)]


def scores_of(run: RunData) -> list[Score]:
    """Return the scores by which runs are compared and models are found."""
    return [score for result in run.results.values() for score in result.scores()]


def headlines_of(run: RunData) -> list[Headline]:
    """Return the few numbers that sum up what was found."""
    return [headline for result in run.results.values() for headline in result.headlines()]


def _tables_of(result: EvaluationResult) -> list[Table]:
    """Return the tables for the page, the notes below the first."""
    tables: list[Table] = []
    for table in result.tables():
        header = [title.replace("-\n", "-").replace("\n", " ") for title in table.header]
        rows = [[cell or EMPTY for cell in row] for row in table.rows]
        notes = [] if tables else result.notes()
        tables.append(Table(table.caption, header, rows, notes=notes, wide=len(header) > _NARROW))
    return tables
