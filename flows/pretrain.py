"""Train on existing samples: ``python -m flows.pretrain configs/base.yaml``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from prefect import flow

from flows.command import run_flow
from flows.context import run_context, run_name
from flows.tasks import train
from kexue_train.pipeline.stages import TRAIN


@flow(name="pretrain", flow_run_name=run_name, persist_result=False)
def pretrain(
    config_path: Path,
    run_dir: Path | None = None,
    overrides: list[str] | None = None,
    ray_address: str | None = None,
) -> Any:
    """Pretrain the encoder on the run's samples; resumes from the last checkpoint.

    Args:
        config_path: YAML file of the run, as a path on the machine where the flow runs.
        run_dir: Run folder with samples; by default ``runs/NAME``.
        overrides: ``section.key=value`` pairs that replace values of the file.
        ray_address: HOST:PORT of a running Ray cluster; by default the value in the file.
    """
    with run_context([TRAIN], config_path, run_dir, overrides, ray_address) as run:
        train(run, run.folder.samples)
    return run.completed(TRAIN)


def main(arguments: list[str] | None = None) -> int:
    """Run the flow from a shell; return the exit code."""
    return run_flow(pretrain, arguments)


if __name__ == "__main__":
    sys.exit(main())
