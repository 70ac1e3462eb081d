"""One process of a training with weights: ``python run_rank.py RANK RANKS FOLDER``; writes weights and parameters.

Rank r of 2 has every second micro-batch; a single process has all of them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from kexue_train.optim.tiger_update import TigerRule
from tests.train.weighting.conflict import Trainer
from tests.train.weighting.test_schemes import CONFIGS, config_of

ORDER = ("a", "b", "c", "a", "a", "b")
STEPS = 4


def main(rank: int, ranks: int, folder: Path) -> None:
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    ends = {}
    for name in CONFIGS:
        trainer = Trainer(config_of(name), ORDER, rule=TigerRule(0.9), lr=1e-3, rank=rank, ranks=ranks)
        for _ in range(STEPS):
            trainer.step()
        state = trainer.weights.state_dict()
        ends[name] = {"given": trainer.given, "state": state, "parameters": trainer.parameters().tolist()}
    (folder / f"{rank}-of-{ranks}.json").write_text(json.dumps(ends))
    if ranks > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
