"""Score a finished training (``python -m flows.evaluate_model configs/base.yaml``) or any model folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from prefect import flow

from flows.artifacts import show_summary
from flows.command import run_flow
from flows.context import run_context, run_name
from flows.tasks import evaluate, export, report
from kexue_train.pipeline.stages import EVALUATE, EXPORT, REPORT


@flow(name="evaluate-model", flow_run_name=run_name, persist_result=False)
def evaluate_model(
    config_path: Path,
    run_dir: Path | None = None,
    model: Path | None = None,
    overrides: list[str] | None = None,
) -> Any:
    """Score a model on the run's held-out rows.

    Args:
        config_path: YAML file of the run, as a path on the machine where the flow runs.
        run_dir: Run folder with samples; by default ``runs/NAME``.
        model: Model folder or checkpoint to score; the scores go to ``evaluations/`` of the run folder. By default the
            finished training of the run is exported and scored, and its report is written.
        overrides: ``section.key=value`` pairs that replace values of the file.
    """
    stages = [EVALUATE] if model else [EXPORT, EVALUATE, REPORT]
    with run_context(stages, config_path, run_dir, overrides) as run:
        if model:
            evaluate(run, model, run.folder.samples, out=run.folder.evaluation_of(model))
        else:
            exported = export(run, *run.run.inputs_of(EXPORT))
            scores = evaluate(run, exported, run.folder.samples)
            report(run, scores)
            show_summary(run.folder.root)
    return run.completed(EVALUATE)


def main(arguments: list[str] | None = None) -> int:
    """Run the flow from a shell; return the exit code."""
    return run_flow(evaluate_model, arguments)


if __name__ == "__main__":
    sys.exit(main())
