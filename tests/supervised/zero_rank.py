"""A worker that trains several jobs in one process group, as importing DeepSpeed takes seconds:
``python zero_rank.py JOBS``. Each line of the file is a JSON object with ``config``, ``samples``, ``out``, and, if the
training is to end as if it had been killed, ``micro_steps``, before the last of which it ends.

As for a large model, DeepSpeed's buckets leave while backward runs, and stage 3 gathers every tensor each time.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch.distributed as dist

from kexue_train.train import engine, worker
from kexue_train.train.job import JobConfig
from kexue_train.train.zero_engine import ZeroEngine
from tests.train.tiny_training import SECONDS


class KilledError(Exception):
    """Stands for a kill."""


def dying(micro_steps: int) -> Any:
    """A ``ZeroEngine.micro_step`` that dies."""
    micro_step, left = ZeroEngine.micro_step, [micro_steps]

    def step(self: ZeroEngine, batch: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            raise KilledError
        return micro_step(self, batch)

    return step


def as_for_a_large_model(*arguments: Any, **more: Any) -> dict[str, Any]:
    """Return DeepSpeed's configuration with small limits."""
    settings = _MAKE_CONFIG(*arguments, **more)
    settings["zero_optimization"] |= {"reduce_bucket_size": 4000, "stage3_param_persistence_threshold": 0}
    return settings


_MAKE_CONFIG = engine.make_deepspeed_config


def run(job: dict[str, Any]) -> None:
    """Train one job."""
    config = JobConfig.parse(job["config"], where="test")
    step = dying(job["micro_steps"]) if "micro_steps" in job else ZeroEngine.micro_step
    with patch.object(ZeroEngine, "micro_step", step):
        try:
            worker.run_worker(config, Path(job["samples"]), Path(job["out"]))
        except KilledError:
            dist.barrier()  # the checkpoints of the other rank are written


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # DeepSpeed calls deprecated functions
    dist.init_process_group("gloo", timeout=timedelta(seconds=SECONDS))
    with (
        patch.object(worker, "join_process_group", lambda *_, **__: None),
        patch.object(engine, "make_deepspeed_config", as_for_a_large_model),
        patch.object(worker.dist, "destroy_process_group", lambda *_: None),
    ):
        for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
            run(json.loads(line))
    sys.stdout.flush()
    os._exit(0)  # DeepSpeed's engines outlive their group
