"""One process of a data-parallel Tiger run: ``python run_rank.py RANK RANKS FOLDER``; writes its parameters there.

Every micro-batch holds two halves; rank r of 2 sees half r, a single process sees their mean.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch.distributed as dist

from kexue_train.optim import Tiger, build_param_groups
from tests.reference.toy_model import Toy, draw_gradients

ACCUMULATION, WINDOWS, BAD_MICRO_BATCH = 3, 6, 10


def main(rank: int, ranks: int, folder: Path) -> None:
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    for bad in (False, True):
        halves = [draw_gradients(ACCUMULATION * WINDOWS, seed=half) for half in range(2)]
        if bad:
            halves[1][BAD_MICRO_BATCH]["matrix"][0, 0] = np.inf
        toy = Toy()
        optimizer = Tiger(build_param_groups(toy), lr=2e-3, accumulation_steps=ACCUMULATION)
        for pair in zip(*halves, strict=True):
            mean = {name: (pair[0][name] + pair[1][name]) / 2 for name in pair[0]}
            toy.backward(mean if ranks == 1 else pair[rank])
            optimizer.step()
        np.savez(folder / f"{'bad' if bad else 'good'}-{rank}-of-{ranks}.npz", **toy.numpy())
    if ranks > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
