"""What ranks do with a model, beside what one process does with all of their rows: run by ``test_optimizer_ranks``.

Each case is a generator of losses of one rank's rows, or of all rows, so that both are spelled once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from kexue_train.optim import Tiger, build_param_groups, moment_average
from kexue_train.optim.options import Options
from kexue_train.optim.ranks import RankAverage

STEPS, ROWS = 4, 4


class Net(nn.Module):
    """A body that is used twice, two heads of one shape, and one that is hardly ever used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.shared = nn.Linear(6, 8), nn.Linear(8, 8)
        self.a, self.b, self.rare = nn.Linear(8, 3), nn.Linear(8, 3), nn.Linear(8, 3)
        self.double()

    def forward(self, x: Tensor, head: str = "a", segments: bool | None = None) -> Tensor:
        """``segments``: None for no checkpoints, else whether they are reentrant."""
        x = self.first(x)
        for _ in range(2):
            if segments is None:
                x = torch.tanh(self.shared(x))
            else:
                x = checkpoint(lambda z: torch.tanh(self.shared(z)), x, use_reentrant=segments)
        return getattr(self, head)(x)


Run = Callable[[nn.Module, Tiger, int, Tensor, Tensor], None]
"""Runs the backwards of one micro-batch: model, optimizer, its number, rows and labels of all ranks or of one."""


def _loss(model: nn.Module, x: Tensor, y: Tensor, **how: object) -> Tensor:
    return nn.functional.cross_entropy(model(x, **how), y)


def one_loss(model, optimizer, number, x, y):
    _loss(model, x, y).backward()


def two_losses(model, optimizer, number, x, y):
    _loss(model, x, y).backward()
    _loss(model, x, y, head="b").backward()


def two_losses_from_the_third_step_on(model, optimizer, number, x, y):
    _loss(model, x, y).backward()
    if number >= 4:
        _loss(model, x, y, head="b").backward()


def retained_graph(model, optimizer, number, x, y):
    loss = _loss(model, x, y)
    loss.backward(retain_graph=True)
    loss.backward()


def segments(model, optimizer, number, x, y, *, reentrant):
    _loss(model, x, y, segments=reentrant).backward()


def by_hand(model, optimizer, number, x, y):
    gradients = torch.autograd.grad(_loss(model, x, y), list(model.parameters()), allow_unused=True)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient


def freezes(model, optimizer, number, x, y):
    model.shared.requires_grad_(not 2 <= number < 6)
    _loss(model, x, y).backward()


def rarely(model, optimizer, number, x, y):
    _loss(model, x, y, head="rare" if number == 3 else "a").backward()


CASES: dict[str, tuple[Run, dict[str, object]]] = {
    "one loss": (one_loss, {}),
    "two losses": (two_losses, {}),
    "two losses later": (two_losses_from_the_third_step_on, {}),
    "retained graph": (retained_graph, {}),
    "reentrant": (partial(segments, reentrant=True), {}),
    "not reentrant": (partial(segments, reentrant=False), {}),
    "by hand": (by_hand, {}),
    "frozen": (freezes, {}),
    "lazy": (rarely, {"lazy_tensors": True}),
    "gradient, two losses": (two_losses, {"accumulate": "gradient"}),
    "gradient, reentrant": (partial(segments, reentrant=True), {"accumulate": "gradient"}),
    "gradient, by hand": (by_hand, {"accumulate": "gradient"}),
    "gradient, frozen": (freezes, {"accumulate": "gradient"}),
    "gradient, lazy": (rarely, {"accumulate": "gradient", "lazy_tensors": True}),
}


DDP_WAYS = ((False, True), (True, False))
"""Whether gradients are views of DDP's buckets, and whether it reduces in every micro-batch."""


def head_of_its_own(model, x, y, rank):
    return _loss(model, x, y, head="ab"[rank % 2])


def run(case: str, rank: int, ranks: int) -> dict[str, np.ndarray]:
    """Train on the rows of ``rank``; with ``ranks`` = 0, alone on all of them."""
    run_micro_batch, options = CASES[case]
    model = Net()
    optimizer = Tiger(build_param_groups(model), 1e-2, accumulation_steps=2, options=_options(ranks, **options))
    generator = torch.Generator().manual_seed(5)
    for number in range(2 * STEPS):
        x = torch.randn(6 * ROWS, 6, generator=generator, dtype=torch.float64)
        y = torch.randint(0, 3, (6 * ROWS,), generator=generator)
        mine = slice(rank * len(x) // ranks, (rank + 1) * len(x) // ranks) if ranks else slice(None)
        run_micro_batch(model, optimizer, number, x[mine], y[mine])
        optimizer.step()
    return _numbers(model)


def heads_differ(rank: int, ranks: int, *, ranks_of_one: int = 0, **options: object) -> dict[str, np.ndarray]:
    """Every rank goes through another head; with ``ranks`` = 0 one process goes through those of ``ranks_of_one``."""
    model = Net()
    optimizer = Tiger(build_param_groups(model), 1e-2, accumulation_steps=2, options=_options(ranks, **options))
    generator = torch.Generator().manual_seed(5)
    of = ranks or ranks_of_one
    for number in range(2 * STEPS):
        x = torch.randn(of, ROWS, 6, generator=generator, dtype=torch.float64)
        y = torch.randint(0, 3, (of, ROWS), generator=generator)
        if ranks:
            head_of_its_own(model, x[rank], y[rank], rank + number // 3).backward()
        else:
            sum(head_of_its_own(model, x[r], y[r], r + number // 3) for r in range(of)).div(of).backward()
        optimizer.step()
    return _numbers(model)


def wrapped_in_ddp(rank: int, ranks: int, *, accumulate: str, views: bool, syncs: bool) -> dict[str, np.ndarray]:
    """Under DistributedDataParallel, which reduces what there is of gradients as well."""
    model = Net()
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=views, find_unused_parameters=True)
    optimizer = Tiger(
        build_param_groups(model), 1e-2, accumulation_steps=2, options=_options(ranks, accumulate=accumulate)
    )
    generator = torch.Generator().manual_seed(5)
    for number in range(2 * STEPS):
        x = torch.randn(6 * ROWS, 6, generator=generator, dtype=torch.float64)
        y = torch.randint(0, 3, (6 * ROWS,), generator=generator)
        mine = slice(rank * len(x) // ranks, (rank + 1) * len(x) // ranks)
        if syncs or number % 2:
            one_loss(wrapped, optimizer, number, x[mine], y[mine])
        else:
            with wrapped.no_sync():
                one_loss(wrapped, optimizer, number, x[mine], y[mine])
        optimizer.step()
    return _numbers(model)


def message_of_one_rank_that_freezes(rank: int) -> str:
    model = Net()
    optimizer = Tiger(build_param_groups(model), 1e-2)
    model.shared.requires_grad_(rank != 0)
    one_loss(model, optimizer, 0, torch.randn(4, 6, dtype=torch.float64), torch.zeros(4, dtype=torch.int64))
    try:
        optimizer.step()
    except ValueError as error:
        return str(error)
    return "nothing"


def main(rank: int, ranks: int, folder: Path) -> None:
    """Run everything as one of ``ranks`` processes and write it to ``folder``."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    moment_average.RankAverage = partial(RankAverage, bucket_bytes=8 * 60)  # type: ignore[misc]
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    ends = {case: run(case, rank, ranks) for case in CASES}
    for accumulate in ("momentum", "gradient"):
        ends[f"heads, {accumulate}"] = heads_differ(rank, ranks, accumulate=accumulate)
        for views, syncs in DDP_WAYS:
            name = f"ddp, {accumulate}, {views=}, {syncs=}"
            ends[name] = wrapped_in_ddp(rank, ranks, accumulate=accumulate, views=views, syncs=syncs)
    ends["frozen on one rank"] = {"message": np.array(message_of_one_rank_that_freezes(rank))}
    for name, numbers in ends.items():
        np.savez(folder / f"{name}-{rank}.npz", **numbers)  # type: ignore[arg-type]  # arrays by name
    dist.barrier()
    dist.destroy_process_group()


def _options(ranks: int, **options: object) -> Options:
    return Options(average_over_ranks=ranks > 0, **options)  # type: ignore[arg-type]  # by name


def _numbers(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}
