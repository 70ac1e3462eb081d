"""Build vocabulary and samples from text shards: ``python -m flows.build_samples configs/base.yaml``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from prefect import flow

from flows.command import run_flow
from flows.context import run_context, run_name
from flows.tasks import samples, tokenizer
from kexue_train.pipeline.stages import SAMPLES, TOKENIZER


@flow(name="build-samples", flow_run_name=run_name, persist_result=False)
def build_samples(
    config_path: Path,
    run_dir: Path | None = None,
    overrides: list[str] | None = None,
    ray_address: str | None = None,
) -> Any:
    """Turn the run's text shards into packed rows of sentence pairs, of every length that training needs.

    Args:
        config_path: YAML file of the run, as a path on the machine where the flow runs.
        run_dir: Run folder with text shards; by default ``runs/NAME``.
        overrides: ``section.key=value`` pairs that replace values of the file.
        ray_address: HOST:PORT of a running Ray cluster; by default the value in the file.
    """
    with run_context([TOKENIZER, SAMPLES], config_path, run_dir, overrides, ray_address) as run:
        vocabulary = tokenizer(run, run.folder.shards)
        samples(run, run.folder.shards, vocabulary)
    return run.completed(TOKENIZER, SAMPLES)


def main(arguments: list[str] | None = None) -> int:
    """Run the flow from a shell; return the exit code."""
    return run_flow(build_samples, arguments)


if __name__ == "__main__":
    sys.exit(main())
