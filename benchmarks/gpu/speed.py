"""How fast: models, rows, eager or compiled, with and without recomputation, beside a large matrix product; a trace."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.check import Bench, Check, CheckFailed, Figures, Sizes, require
from benchmarks.gpu.made_up import batches, make_objective, model_config
from kexue_train.batches.dataset import SampleDataset
from kexue_train.model.config import ModelConfig
from kexue_train.model.recompute import compile_layers, enable_recompute
from kexue_train.optim.build import AccumulatingOptimizer, build_optimizer
from kexue_train.optim.config import OptimizerConfig
from kexue_train.samples.mlm import IGNORE_INDEX
from kexue_train.train.data import Tensors, synchronize
from kexue_train.train.engine import TorchEngine
from kexue_train.train.micro_batch import is_out_of_memory
from kexue_train.train.monitor.flops import datasheet_rate, flop_rule, measured_rate

_WARM_UP, _MEASURED, _TRACED = 3, 6, 3
_SECONDS_OF_A_CELL = 12.0
"""Less must be left of the time box for another cell; compiling takes most of it."""
_KERNELS_SHOWN = 15


Layers = Literal["eager", "compiled", "graphs"]


class Cell(NamedTuple):
    """One way to train."""

    model: str
    rows: int
    layers: Layers
    """"graphs" are compiled layers that are replayed as CUDA graphs."""
    recompute: str

    def __str__(self) -> str:
        return f"{self.model}, {self.rows} rows, {self.layers}, recompute {self.recompute}"


class _Run:
    """A model and its optimizer, as a cell has them, with one micro-batch."""

    def __init__(self, bench: Bench, cell: Cell) -> None:
        self.device, self.model = bench.device, _model_of(bench, cell.model)
        objective = make_objective(bench, self.model, rows=cell.rows, autocast=bench.autocast)
        if cell.recompute == "full":
            enable_recompute(objective.model.roformer, "full")
        if cell.layers != "eager":
            objective.has_graphs = cell.layers == "graphs"
            compile_layers(objective.model.roformer, backend=bench.sizes.backend, cuda_graphs=objective.has_graphs)
        optimizer = build_optimizer(OptimizerConfig(), objective.model, accumulation_steps=1, seed=0)
        self.optimizer: AccumulatingOptimizer = optimizer
        self.engine = TorchEngine(objective, optimizer)
        (self.batch,) = batches(bench, 1, cell.rows)
        for _ in range(_WARM_UP):
            self.last = self.engine.micro_step(self.batch)
        synchronize(self.device)

    def seconds(self) -> float:
        """Of one step, once the device has done it."""
        started = time.perf_counter()
        self.last = self.engine.micro_step(self.batch)
        synchronize(self.device)
        return time.perf_counter() - started

    def host_seconds(self) -> float:
        """Until everything of one step is queued."""
        synchronize(self.device)
        started = time.perf_counter()
        self.engine.micro_step(self.batch)
        taken = time.perf_counter() - started
        synchronize(self.device)
        return taken


def check_speed(bench: Bench) -> Figures:
    """The grid, the most telling cells first, as far as the time box goes; then a trace of the fastest."""
    rate = measured_rate(bench.autocast or torch.float32, bench.device)
    promised = None if bench.is_stand_in else datasheet_rate(torch.cuda.get_device_name(), torch.bfloat16)
    figures: Figures = {"peak_tflops": rate / 1e12, "datasheet_tflops": (promised or 0) / 1e12 or None, "cells": {}}
    cells = figures["cells"]
    for cell in grid(bench):
        if cells and bench.seconds_left < _SECONDS_OF_A_CELL:
            cells[str(cell)] = "no time was left"
            continue
        cells[str(cell)] = _measured(bench, cell, rate)
    measured = {cell: found for cell in grid(bench) if isinstance(found := cells[str(cell)], dict)}
    require(bool(measured), "no cell of the grid could be measured", figures)
    fastest = max(measured, key=lambda cell: measured[cell]["share_of_peak"])
    figures["fastest"], share = str(fastest), measured[fastest]["share_of_peak"]
    require(
        share >= bench.sizes.least_share_of_peak, f"{fastest}: only {share:.0%} of a matrix product's rate", figures
    )
    figures["where_time_goes"] = _trace(bench, fastest)
    return figures


def _cells(sizes: Sizes, layers: Layers, recompute: str, rows: Sequence[int]) -> Iterator[Cell]:
    for number, model in itertools.product(rows, sizes.grid):
        yield Cell(model, number, layers, recompute)


def grid(bench: Bench) -> Iterator[Cell]:
    """Yield the cells in the order in which they are worth their time."""
    sizes = bench.sizes
    yield from _cells(sizes, "compiled", "none", sizes.grid_rows)
    yield from _cells(sizes, "graphs", "none", (min(sizes.grid_rows),))  # they spare the host work of small batches
    yield from _cells(sizes, "eager", "none", sizes.grid_rows)
    yield from _cells(sizes, "compiled", "full", sizes.grid_rows)
    yield from _cells(sizes, "eager", "full", sizes.grid_rows)


def _measured(bench: Bench, cell: Cell, rate: float) -> dict[str, Any] | str:
    torch._dynamo.reset()
    try:
        return _measure(bench, cell, rate)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise CheckFailed(f"{cell}: {error}") from error
    finally:
        if not bench.is_stand_in:
            torch.cuda.empty_cache()
    return "out of memory"


def _measure(bench: Bench, cell: Cell, rate: float) -> dict[str, Any]:
    if not bench.is_stand_in:
        torch.cuda.reset_peak_memory_stats(bench.device)
    run = _Run(bench, cell)
    seconds = statistics.median(run.seconds() for _ in range(_MEASURED))
    host = statistics.median(run.host_seconds() for _ in range(_MEASURED))
    tokens, flops = _work(run.batch, run.model, SampleDataset(bench.samples).vocab_size)
    loss = float(run.last[0, 0] / run.last[0, 2])
    found = {
        "tokens_per_second": tokens / seconds,
        "tflops": flops / seconds / 1e12,
        "share_of_peak": flops / seconds / rate,
        "ms": 1e3 * seconds,
        "host_ms": 1e3 * host,
        "optimizer_ms": 1e3 * _optimizer_seconds(run),
        "gigabytes": None if bench.is_stand_in else torch.cuda.max_memory_allocated(bench.device) / 1e9,
        "loss": loss,
    }
    require(loss == loss and loss < 100, f"{cell}: the loss is {loss}", found)
    return found


def _work(batch: Tensors, model: ModelConfig, vocab_size: int) -> tuple[int, float]:
    """Return real tokens and useful operations of a micro-batch, by the rule of ``mfu``."""
    ids = batch["sequence_ids"]
    lengths = [row[row > 0].unique_consecutive(return_counts=True)[1] for row in ids]
    seen = sum(int(length.square().sum()) for length in lengths)
    tokens, predicted = int((ids > 0).sum()), int((batch["prediction_labels"] != IGNORE_INDEX).sum())
    return tokens, flop_rule(model, vocab_size).flops(tokens, seen, predicted)


def _optimizer_seconds(run: _Run) -> float:
    """Of a step on gradients that are there: fold and move of all tensors."""
    params = [param for group in run.optimizer.param_groups for param in group["params"]]
    times = []
    for _ in range(_WARM_UP):
        for param in params:
            param.grad = torch.zeros_like(param)
        synchronize(run.device)
        started = time.perf_counter()
        run.optimizer.step()
        synchronize(run.device)
        times.append(time.perf_counter() - started)
    return min(times)


def _model_of(bench: Bench, name: str) -> ModelConfig:
    sizes = bench.sizes.grid[name]
    base = {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
    return model_config(bench, **{**base, **sizes})


def _trace(bench: Bench, cell: Cell) -> list[dict[str, Any]]:
    """Record three steps into ``trace.json.gz``; return the kernels that take longest, with their share."""
    run = _Run(bench, cell)
    kinds = [ProfilerActivity.CPU] if bench.is_stand_in else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=kinds) as recorded:
        for _ in range(_TRACED):
            run.seconds()
    recorded.export_chrome_trace(str(bench.out / "trace.json.gz"))
    taken: Callable[[Any], float] = lambda event: (  # noqa: E731  # one of two attributes
        event.self_cpu_time_total if bench.is_stand_in else event.self_device_time_total
    )
    events = sorted(recorded.key_averages(), key=taken, reverse=True)
    total = sum(map(taken, events)) or 1.0
    return [
        {"kernel": event.key[:100], "share": taken(event) / total, "calls": event.count / _TRACED}
        for event in events[:_KERNELS_SHOWN]
    ]


CHECKS = (Check(name="speed", minutes=2.0, run=check_speed),)
