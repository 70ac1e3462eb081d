"""One rank of several that report six steps, of which rank 1 asks to stop in the fourth: ``tell_each_other.py OUT``."""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from kexue_train.train.config import ObjectiveConfig
from kexue_train.train.distributed import join_process_group
from kexue_train.train.faults.step_report import StepReports
from kexue_train.train.heads import pretraining_heads

if __name__ == "__main__":
    join_process_group("gloo", hang_timeout=300.0)
    rank, heard = dist.get_rank(), []
    reports = StepReports(pretraining_heads(ObjectiveConfig(nsp_weight=0.0)), timedelta(seconds=300))
    asked = False
    for step in range(1, 7):
        time.sleep(0.02 * rank)
        asked |= rank == 1 and step == 4
        sums = torch.tensor([[4.0 * (step + rank), 0.0, 4.0], [0.0, 0.0, 0.0]])
        heard.append(reports.add(step, sums, asked=asked, drained=False))
    heard.append(reports.drain(asked=asked, drained=False))
    Path(sys.argv[1]).write_text(json.dumps(heard))
    dist.barrier()
    dist.destroy_process_group()
