"""New files for a trained run: ``python -m flows.refresh_corpus configs/base.yaml --inputs 'incoming/*.jsonl'``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from prefect import flow

from flows.artifacts import show_summary
from flows.command import run_flow
from flows.tasks import evaluate, export, report, samples, shuffle, train
from flows.workshop import open_workshop, run_name
from kexue_train.pipeline.refresh import next_generation, plan_training


@flow(name="refresh-corpus", flow_run_name=run_name, persist_result=False)
def refresh_corpus(
    config_path: Path,
    run_dir: Path | None = None,
    inputs: list[str] | None = None,
    replay: float = 0.5,
    overrides: list[str] | None = None,
    ray_address: str | None = None,
) -> Any:
    """Shuffle and sample the files that have arrived since, and go on training with them; without any, end at once.

    Args:
        config_path: YAML file of the run, as the machine that works sees it.
        run_dir: Run folder with a finished training; by default ``runs/NAME``.
        inputs: Files, folders or globs where new files arrive; by default the run's own ``corpus.inputs``. Files that
            were read before are known by path, size and time of change.
        replay: Share of old rows in every batch, from 0 up to 1.
        overrides: ``section.key=value`` texts that replace values of the file.
        ray_address: HOST:PORT of a running Ray cluster; by default what the file says.
    """
    stages = ["shuffle", "samples", "train", "export", "evaluate", "report"]
    with open_workshop(stages, config_path, run_dir, overrides, ray_address, claim=False) as workshop:
        config, root = workshop.run.config, workshop.run.folder.root
        generation = next_generation(config, root, inputs=inputs or (), progress=workshop.board)
        if generation is None:
            return workshop.ended("no new files, nothing to do")
        workshop.run = generation
        shuffle(workshop)
        samples(workshop)
        workshop.run = plan_training(generation, replay=replay, overrides=overrides or ())
        train(workshop)
        export(workshop)
        evaluate(workshop)
        report(workshop)
        show_summary(workshop.run.folder.root)
    return workshop.completed("shuffle", "train", "evaluate")


def main(arguments: list[str] | None = None) -> int:
    """Run the flow from a shell; returns the exit code."""
    return run_flow(refresh_corpus, arguments)


if __name__ == "__main__":
    sys.exit(main())
