"""Train on new files: ``python -m flows.refresh_corpus configs/base.yaml --inputs 'incoming/*.jsonl'``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from prefect import flow

from flows.artifacts import show_summary
from flows.command import run_flow
from flows.context import run_context, run_name
from flows.credentials import as_given
from flows.tasks import evaluate, export, report, samples, shuffle, train
from kexue_train.pipeline.refresh import next_generation, plan_training
from kexue_train.pipeline.stages import EVALUATE, EXPORT, REPORT, SAMPLES, SHUFFLE, TRAIN


@flow(name="refresh-corpus", flow_run_name=run_name, persist_result=False)
def refresh_corpus(
    config_path: Path,
    run_dir: Path | None = None,
    inputs: list[str] | None = None,
    replay: float = 0.5,
    overrides: list[str] | None = None,
    ray_address: str | None = None,
) -> Any:
    """Shuffle and sample the new files, and continue training with them; end at once if there are none.

    Args:
        config_path: YAML file of the run, as a path on the machine where the flow runs.
        run_dir: Run folder with a finished training; by default ``runs/NAME``.
        inputs: Files, folders or globs where new files arrive; by default the run's own ``corpus.inputs``. Files that
            were read before are recognised by path, size and modification time.
        replay: Share of old rows in every batch, from 0 up to 1.
        overrides: ``section.key=value`` pairs that replace values of the file.
        ray_address: HOST:PORT of a running Ray cluster; by default the value in the file.
    """
    stages = [SHUFFLE, SAMPLES, TRAIN, EXPORT, EVALUATE, REPORT]
    with run_context(stages, config_path, run_dir, overrides, ray_address, claim=False) as first:
        config, root = first.run.config, first.folder.root
        generation = next_generation(config, root, inputs=as_given(inputs), progress=first.board)
        if generation is None:
            return first.ended("no new files, nothing to do")
        run = first.on(generation.run)
        shards = shuffle(run, run.folder.corpus)  # only the new files
        rows = samples(run, shards, run.folder.tokenizer)  # with the vocabulary of the first run
        planned = plan_training(generation, replay=replay, overrides=as_given(overrides))
        run = first.on(planned.run)
        weights = train(run, planned.mixture)  # new rows and old ones
        model = export(run, weights)
        scores = evaluate(run, model, rows)
        report(run, scores)
        show_summary(run.folder.root)
    return run.completed(SHUFFLE, TRAIN, EVALUATE)


def main(arguments: list[str] | None = None) -> int:
    """Run the flow from a shell; return the exit code."""
    return run_flow(refresh_corpus, arguments)


if __name__ == "__main__":
    sys.exit(main())
