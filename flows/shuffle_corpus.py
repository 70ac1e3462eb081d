"""Shuffle the corpus: ``python -m flows.shuffle_corpus configs/base.yaml``; this works on machines without torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from prefect import flow

from flows.command import run_flow
from flows.context import run_context, run_name
from flows.tasks import corpus, shuffle
from kexue_train.pipeline.stages import CORPUS, SHUFFLE


@flow(name="shuffle-corpus", flow_run_name=run_name, persist_result=False)
def shuffle_corpus(
    config_path: Path,
    run_dir: Path | None = None,
    overrides: list[str] | None = None,
    ray_address: str | None = None,
    fresh: bool = False,
) -> Any:
    """Put the corpus on disk in exactly uniform random order.

    Args:
        config_path: YAML file of the run, as a path on the machine where the flow runs.
        run_dir: Run folder; by default ``runs/NAME``.
        overrides: ``section.key=value`` pairs that replace values of the file.
        ray_address: HOST:PORT of a running Ray cluster; by default the value in the file.
        fresh: Empty the run folder and start over.
    """
    with run_context([CORPUS, SHUFFLE], config_path, run_dir, overrides, ray_address, fresh) as run:
        documents = corpus(run)
        shuffle(run, documents)
    return run.completed(SHUFFLE)


def main(arguments: list[str] | None = None) -> int:
    """Run the flow from a shell; return the exit code."""
    return run_flow(shuffle_corpus, arguments)


if __name__ == "__main__":
    sys.exit(main())
