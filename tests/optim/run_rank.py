"""One process of data-parallel runs: ``python run_rank.py RANK RANKS FOLDER``; writes its parameters there.

Every micro-batch holds two halves; rank r of 2 sees half r, a single process sees their mean.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from kexue_train.optim import Tiger, accumulation, build_param_groups, moment_average
from kexue_train.optim.options import Options
from kexue_train.optim.ranks import _HOST_GROUPS, RankAverage
from tests.optim.folded_together import FoldedTogether
from tests.reference.toy_model import Toy, draw_gradients

ACCUMULATION, WINDOWS, BAD_MICRO_BATCH = 3, 6, 10
RUNS: dict[str, dict[str, object]] = {
    "good": {},
    "bad": {},
    "gradient": {"accumulate": "gradient"},
    "missing": {},
    "lazy": {"lazy_rows": True},
    "bf16": {"bf16_states": True},
}
FOLDED_TOGETHER = ("good", "bad", "missing")
"""Run once more as on GPUs: gradients are folded several at a time, and hosts need a group of their own to talk."""
# Of two tensors each, so that a window has two reductions.
moment_average.RankAverage = partial(RankAverage, bucket_bytes=8 * 29)  # type: ignore[misc]


def run(name: str, rank: int, ranks: int) -> Toy:
    halves = [draw_gradients(ACCUMULATION * WINDOWS, seed=half) for half in range(2)]
    if name == "bad":
        halves[1][BAD_MICRO_BATCH]["matrix"][0, 0] = np.inf
    if name == "missing":  # one rank has no gradient of the matrix in a last micro-batch, nor at all in a window
        for index in (2, 5, 9, 10, 11):
            halves[1][index]["matrix"][:] = 0.0
    toy = Toy(torch.bfloat16 if name == "bf16" else torch.float64)
    options = Options(**RUNS[name])  # type: ignore[arg-type]
    optimizer = Tiger(build_param_groups(toy), lr=2e-3, accumulation_steps=ACCUMULATION, options=options)
    for number, pair in enumerate(zip(*halves, strict=True)):
        mean = {name: (pair[0][name] + pair[1][name]) / 2 for name in pair[0]}
        own = mean if ranks == 1 else pair[rank]
        if name == "missing" and rank == 1:
            own = {tensor: gradient for tensor, gradient in own.items() if gradient.any()}
        toy.backward(own)
        for half in range(2) if ranks == 1 else [rank]:
            optimizer.observe_tokens(torch.tensor([(number + 3 * half) % 7]))
        optimizer.step()
    return toy


def main(rank: int, ranks: int, folder: Path) -> None:
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    for name in RUNS:
        np.savez(folder / f"{name}-{rank}-of-{ranks}.npz", **run(name, rank, ranks).numpy())
    accumulation.choose_storage = FoldedTogether  # type: ignore[misc,assignment]
    dist.get_backend = lambda *_: "nccl"  # type: ignore[assignment]
    for name in FOLDED_TOGETHER:
        np.savez(folder / f"{name} together-{rank}-of-{ranks}.npz", **run(name, rank, ranks).numpy())
    if ranks > 1:
        assert list(_HOST_GROUPS) == [dist.group.WORLD]  # one, made once
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
