"""READ FIRST. The whole run in data order, one line per stage.

Run it: ``python -m flows.pretrain_pipeline configs/demo.yaml [--run-dir DIR] [--fresh] [section.key=value ...]``
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from prefect import flow
from rich.console import Console

from flows.artifacts import show_summary
from flows.command import run_flow
from flows.context import run_context, run_name
from flows.tasks import corpus, evaluate, export, report, samples, shuffle, tokenizer, train
from kexue_train.cli.terminal import make_board, print_ending
from kexue_train.foundation.run_dir import RunDir
from kexue_train.pipeline.run import Run, is_complete
from kexue_train.pipeline.run_config import RunConfig
from kexue_train.pipeline.stages import EVALUATE, STAGES, TRAIN


@flow(name="pretrain-pipeline", flow_run_name=run_name, persist_result=False)
def pretrain_pipeline(
    config_path: Path,
    run_dir: Path | None = None,
    overrides: list[str] | None = None,
    ray_address: str | None = None,
    fresh: bool = False,
) -> Any:
    """Raw text in, a pretrained encoder with its report out; run again after any interruption, it goes on.

    Args:
        config_path: YAML file of the run, as the machine that works sees it.
        run_dir: Run folder; by default ``runs/NAME``.
        overrides: ``section.key=value`` texts that replace values of the file.
        ray_address: HOST:PORT of a running Ray cluster; by default what the file says.
        fresh: Empty the run folder and start over.
    """
    with run_context(STAGES, config_path, run_dir, overrides, ray_address, fresh) as run:
        documents = corpus(run)
        shards = shuffle(run, documents)
        vocabulary = tokenizer(run, shards)
        rows = samples(run, shards, vocabulary)
        weights = train(run, rows)
        model = export(run, weights)
        scores = evaluate(run, model, rows)
        report(run, scores)
        show_summary(run.folder.root)
    return run.completed(TRAIN, EVALUATE)


def main(arguments: list[str] | None = None) -> int:
    """Run the flow from a shell; returns the exit code."""
    return run_flow(pretrain_pipeline, arguments, find_complete=_find_complete, ending=print_ending)


def _find_complete(config: RunConfig, root: Path) -> bool:
    run = Run(config, RunDir(root))
    if not is_complete(run):
        return False
    with make_board([stage.name for stage in STAGES], Console()) as board:
        for stage in STAGES:
            board.finish(stage.name, stage.describe(config, run.folder_of(stage)), 0.0, made=False)
    return True


if __name__ == "__main__":
    sys.exit(main())
