"""The results of a run in the card of its exported model, for people and for Hugging Face's ``model-index``."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from kexue_train.downstream.results.result import Score
from kexue_train.export.results_in_card import write_results
from kexue_train.foundation.errors import ArtifactError
from kexue_train.report.results import evaluation_tables, scores_of
from kexue_train.report.run_data import RunData
from kexue_train.report.summary import describe_quality
from kexue_train.report.tables import Table


def add_results_to_card(run: RunData) -> bool:
    """Write what the evaluations found into ``hf/README.md``; returns whether it is there."""
    scores = scores_of(run)
    if not scores or "hf" not in run.manifests:
        return False
    try:
        return write_results(run.folder / "hf", [model_index(run.name, scores)], markdown(run))
    except ArtifactError:  # it is being rebuilt at this moment
        return False


def model_index(name: str, scores: list[Score]) -> dict[str, Any]:
    """Return one entry of ``model-index``: the scores by what was asked (https://huggingface.co/docs/hub/model-cards)."""
    results = [
        {
            "task": {"type": task_type},
            "dataset": {"type": group.replace(" ", "-"), "name": group},
            "metrics": [{"type": s.metric, "value": round(s.value, 6), "name": s.name} for s in members],
        }
        for (group, task_type), members in groupby(scores, key=lambda score: (score.group, score.task_type))
    ]
    return {"name": name, "results": results}


def markdown(run: RunData) -> str:
    """Return the section of the card."""
    parts = ["## Evaluation", describe_quality(run), *(table_markdown(table) for table in evaluation_tables(run))]
    return "\n\n".join(parts) + "\n"


def table_markdown(table: Table) -> str:
    """Return a table with its caption and notes."""
    lines = [table.header, ["---", *["---:" if table.numeric else "---"] * (len(table.header) - 1)], *table.rows]
    text = "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )
    return "\n\n".join([f"**{table.caption}**", text, *table.notes])
