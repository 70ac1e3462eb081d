"""Scores: of a finished training (``python -m flows.evaluate_model configs/base.yaml``) or of any model folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from prefect import flow

from flows.artifacts import show_summary
from flows.command import run_flow
from flows.tasks import evaluate, export, report
from flows.workshop import open_workshop, run_name
from kexue_train.pipeline.run import Run


@flow(name="evaluate-model", flow_run_name=run_name, persist_result=False)
def evaluate_model(
    config_path: Path,
    run_dir: Path | None = None,
    model: Path | None = None,
    overrides: list[str] | None = None,
) -> Any:
    """Score a model on the run's held-out rows.

    Args:
        config_path: YAML file of the run, as the machine that works sees it.
        run_dir: Run folder with samples; by default ``runs/NAME``.
        model: Model folder or checkpoint to score, into ``evaluations/`` of the run folder; by default the finished
            training of the run is exported and scored, and its report written.
        overrides: ``section.key=value`` texts that replace values of the file.
    """
    stages = ["evaluate"] if model else ["export", "evaluate", "report"]
    with open_workshop(stages, config_path, run_dir, overrides) as workshop:
        if model:
            workshop.run = Run(workshop.run.config, workshop.run.folder, model)
            evaluate(workshop)
        else:
            export(workshop)
            evaluate(workshop)
            report(workshop)
            show_summary(workshop.run.folder.root)
    return workshop.completed("evaluate")


def main(arguments: list[str] | None = None) -> int:
    """Run the flow from a shell; returns the exit code."""
    return run_flow(evaluate_model, arguments)


if __name__ == "__main__":
    sys.exit(main())
