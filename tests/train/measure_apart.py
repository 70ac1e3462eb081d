"""One of two ranks that find bf16 faster by different shares, and choose: ``measure_apart.py OUT SHARE_0 SHARE_1``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from kexue_train.train import precision
from kexue_train.train.distributed import join_process_group
from tests.train.tiny_training import SEQ_LEN, make_config

if __name__ == "__main__":
    join_process_group("gloo", hang_timeout=300.0)
    out, *shares = sys.argv[1:]
    precision.bf16_share = lambda *_: float(shares[dist.get_rank()])
    config = make_config(precision="auto")
    chosen = precision.choose_precision(config.train, config.model, SEQ_LEN, torch.device("cpu"), None)
    Path(out).write_text(f"{chosen.name}\n{chosen.reason}")
    dist.barrier()
    dist.destroy_process_group()
