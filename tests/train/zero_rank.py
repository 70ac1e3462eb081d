"""One of some processes that train with ZeRO: ``python zero_rank.py RANK RANKS FOLDER``; rank 0 writes results there.
With a fourth word, ``counts``, they only count what they send.

One process runs many cases, as importing DeepSpeed takes seconds.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import traceback
import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch._C import _distributed_c10d
from torch.utils._python_dispatch import TorchDispatchMode

from kexue_train.optim.param_groups import build_param_groups
from kexue_train.train.engine import start_deepspeed
from kexue_train.train.zero_partitions import ZeroPartitions
from tests.train import zero_net
from tests.train.zero_net import CASES, COUNTED, OPTIONS, SMALLEST_TENSOR, STEPS, Case, Net, train


class _Still(torch.optim.Optimizer):
    """Moves nothing."""

    def step(self, closure: None = None) -> None: ...


class _Numbered(nn.Module):
    """A parameter whose elements are numbers from ``first`` on; its gradient is itself, times ``factor``."""

    def __init__(self, param: Tensor, first: int) -> None:
        super().__init__()
        self.numbers = torch.arange(first, first + param.numel(), dtype=torch.float32).view(param.shape)
        self.weight = nn.Parameter(self.numbers.clone(), requires_grad=param.requires_grad)

    def forward(self, factor: Tensor) -> Tensor:
        return factor * (self.weight * self.numbers).sum()


class _NumberedNet(nn.Module):
    """Parameters shaped as those of ``Net``."""

    def __init__(self) -> None:
        super().__init__()
        self.parts, first = nn.ModuleList(), 0
        for param in Net().parameters():
            self.parts.append(_Numbered(param, first))
            first += param.numel()

    def forward(self, factor: Tensor) -> Tensor:
        return sum(part(factor) for part in self.parts)


def numbered_elements(stage: int, folder: Path) -> dict[str, Tensor]:
    """Where the partitions say that elements lie, and what lies there.

    Returns:
        For every slice ``<tensor>/<what>``: the numbers that should lie there, the values and gradients that do.
    """
    model = _NumberedNet()
    groups = build_param_groups(model)
    numbers = {f"parts.{index}.weight": part.numbers for index, part in enumerate(model.parts)}
    names = [name for group in groups for name in group["names"]]
    params = [param for group in groups for param in group["params"]]
    settings = {
        "train_micro_batch_size_per_gpu": 1, "zero_allow_untested_optimizer": True, "steps_per_print": 10**9,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 20, "sub_group_size": 60},
    }  # fmt: skip
    # Groups stay apart: several flat tensors.
    optimizer = _Still([{"params": group["params"]} for group in groups], {"lr": 0.0})
    engine = start_deepspeed(model, optimizer, settings, folder)
    partitions = ZeroPartitions(engine, params)
    found: dict[str, Tensor] = {"flats": torch.tensor(len(partitions.flats))}
    for backward in range(2):  # what the first leaves must not be in the second
        engine.backward(engine(torch.tensor(float(dist.get_rank() + 1))))
        gradients = [gradient.clone() for gradient in partitions.gradients()]
        if not backward:
            partitions.forget_gradients()
    for own, gradient in zip(partitions.slices, gradients, strict=True):
        name = names[own.tensor]
        found[f"{name}/numbers"] = own.within(numbers[name]).clone()
        found[f"{name}/values"] = own.of(partitions.flats).detach().clone()
        found[f"{name}/gradients"] = gradient
    return found


def sent_in_a_step(case: Case, folder: Path, rank: int, ranks: int) -> dict[str, float]:
    """Bytes of the tensors that a step reduces and gathers, by PyTorch's own record; mere numbers are left out."""

    def record() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(_distributed_c10d._dump_fr_trace_json(True, False)).get("entries", [])
        return found

    def sent(steps: int) -> dict[str, int]:
        before = max((entry["record_id"] for entry in record()), default=-1)
        train(case, folder, rank=rank, ranks=ranks, steps=range(steps))
        totals = {"all_reduce": 0, "all_gather": 0}
        for entry in record():
            name = entry["profiling_name"].removeprefix("gloo:")
            elements = sum(math.prod(size) for size in entry["input_sizes"])
            if entry["record_id"] > before and name in totals and elements >= SMALLEST_TENSOR:
                assert entry["input_dtypes"] == ["Float"]
                totals[name] += 4 * elements * (ranks if name == "all_gather" else 1)
        return totals

    two, four = sent(2), sent(4)  # a first step has more to say
    return {name: (four[name] - two[name]) / 2 for name in two}


def count_sent(folder: Path, rank: int, ranks: int) -> None:
    """Write what this rank sends in a step of each case; the steps have rows for all ranks."""
    cases = {name: replace(case, rows=ranks * case.accumulation) for name, case in COUNTED.items()}
    counted = {name: sent_in_a_step(case, folder, rank, ranks) for name, case in cases.items()}
    (folder / f"sent-{ranks}-{rank}.json").write_text(json.dumps(counted))


class _AskedValues(TorchDispatchMode):
    """Notes who asks a tensor for values, for which the host would wait if it lay on a device."""

    _OPERATORS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select", "aten::_unique2")

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in self._OPERATORS:
            self.note()
        return func(*args, **(kwargs or {}))

    def note(self) -> None:
        """Note the innermost function that is neither torch's nor of this file."""
        frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename and f.filename != __file__]
        named = [f for f in frames if f.name != "<genexpr>"]
        self.places.append(f"{Path(named[-1].filename).name}: {named[-1].name}")


def places_that_ask(stage: int, folder: Path, rank: int, ranks: int) -> list[str]:
    """Where the second step of two micro-batches asks for values."""
    mode, micro_steps = _AskedValues(), 0

    def build(*given: Any) -> Any:
        engine = zero_net.engine_module.build_engine(*given)
        run = engine.micro_step

        def watched(batch: Any) -> Tensor:
            nonlocal micro_steps
            micro_steps += 1
            with mode if micro_steps > 2 else nullcontext():
                return run(batch)

        engine.micro_step = watched
        return engine

    def tolist(tensor: Tensor) -> Any:
        if micro_steps > 2:
            mode.note()
        return read(tensor)

    read = Tensor.tolist
    with patch.object(zero_net, "build_engine", build), patch.object(Tensor, "tolist", tolist):
        train(Case(stage, 2), folder, rank=rank, ranks=ranks, steps=range(2))
    return mode.places


def main(rank: int, ranks: int, folder: Path, what: str = "all") -> None:
    os.environ["TORCH_FR_BUFFER_SIZE"] = "2000"
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank), "DS_ACCELERATOR": "cpu"}
    warnings.simplefilter("ignore")  # DeepSpeed calls deprecated functions
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store-{ranks}", rank=rank, world_size=ranks)

    if ranks > 1:
        count_sent(folder, rank, ranks)
    if what == "all":
        train_all(rank, ranks, folder)
    dist.destroy_process_group()


def train_all(rank: int, ranks: int, folder: Path) -> None:
    """Write where elements lie, and the weights and moments at the end of every case."""
    for stage in (1, 2, 3):
        save_file(numbered_elements(stage, folder), folder / f"{ranks} numbers {stage} {rank}.safetensors")

    def save(name: str, case: Case, **more: object) -> dict[str, Tensor]:
        result = train(case, folder, rank=rank, ranks=ranks, **more)
        if rank == 0:
            save_file({name: tensor.contiguous() for name, tensor in result.items()}, folder / f"{name}.safetensors")
        return result

    for name, case in CASES.items():
        save(f"{ranks} {name}", case)
    if ranks == 2:
        for name, case in OPTIONS.items():
            save(name, case)
        asked = {stage: places_that_ask(stage, folder, rank, ranks) for stage in range(4)}
        (folder / f"asked-{rank}.json").write_text(json.dumps(asked))
        middle = STEPS // 2
        for first, then in ((1, 3), (3, 2), (0, 1)):
            box = [train(Case(first), folder, rank=rank, ranks=ranks, steps=range(middle))]
            dist.broadcast_object_list(box, src=0)
            save(f"from {first} to {then}", Case(then), steps=range(middle, STEPS), start=box[0])


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
