"""What recomputation and compilation change: memory and time; and what they must not: losses and gradients."""

from __future__ import annotations

import itertools
import time
from functools import partial

import torch
from torch import Tensor

from benchmarks.encoder_cost import allocated
from benchmarks.gpu.check import Bench, Check, Figures, require
from benchmarks.gpu.made_up import batches, loss_and_gradients, make_objective, model_config, worst_error
from kexue_train.model.recompute import compile_layers, enable_recompute
from kexue_train.train.data import Tensors, synchronize
from kexue_train.train.objective import PretrainingObjective

_LOSS_TOLERANCE = 2e-3
"""Between compiled and plain layers, whose bf16 products are rounded at other places."""
_GRADIENT_TOLERANCE = 5e-2
"""The same for gradients, of the norm of a tensor."""
_RECORDED = 2
"""Micro-batches by which torch warms up and records."""


def check_recompute(bench: Bench) -> Figures:
    """None, selective and full: equal bits of loss and gradients with dropout on, less kept each time."""
    figures: Figures = {}
    first: list[Tensor] = []
    batch = batches(bench, 1, bench.sizes.rows)[0]
    for mode in ("none", "selective", "full"):
        objective = make_objective(bench, model_config(bench), rows=bench.sizes.rows, autocast=bench.autocast)
        if mode != "none":
            enable_recompute(objective.model.roformer, mode)  # type: ignore[arg-type]  # one of the two
        found = [
            x for pass_ in loss_and_gradients(objective, batch) for x in (pass_ if isinstance(pass_, list) else [pass_])
        ]
        first = first or found
        figures[mode] = {
            "kept_bytes": allocated(partial(objective, batch), bench.device).left,
            "ms": 1e3 * min(_seconds(objective, batch, bench.device) for _ in range(3)),
            "equal": all(map(torch.equal, found, first)),
        }
        require(figures[mode]["equal"], f"recompute={mode}: loss or gradients differ from those without", figures)
    for more, less in itertools.pairwise(figures):
        require(
            figures[less]["kept_bytes"] < figures[more]["kept_bytes"],
            f"recompute={less} keeps no less than {more}",
            figures,
        )
    return figures


def _seconds(objective: PretrainingObjective, batch: Tensors, device: torch.device) -> float:
    synchronize(device)
    started = time.perf_counter()
    loss_and_gradients(objective, batch)
    synchronize(device)
    return time.perf_counter() - started


def check_compile(bench: Bench) -> Figures:
    """One graph for all layers, no breaks, nothing compiled again for other sequences, and the plain loss."""
    rows, model = bench.sizes.rows, model_config(bench, dropout=False)
    given = batches(bench, 3, rows)
    plain = [
        loss_and_gradients(make_objective(bench, model, rows=rows, autocast=bench.autocast), batch)[0]
        for batch in given
    ]
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    objective = make_objective(bench, model, rows=rows, autocast=bench.autocast)
    compile_layers(objective.model.roformer, backend=bench.sizes.backend)
    losses = [loss_and_gradients(objective, given[0])[0]]
    graphs = counters["stats"]["unique_graphs"]
    losses += [loss_and_gradients(objective, batch)[0] for batch in given[1:]]
    figures: Figures = {
        "graphs": graphs,
        "graphs_of_later_batches": counters["stats"]["unique_graphs"] - graphs,
        "breaks": dict(counters["graph_break"]),
        "loss_error": worst_error(losses, plain),
        "ms": {
            "eager": 1e3
            * min(
                _seconds(make_objective(bench, model, rows=rows, autocast=bench.autocast), given[0], bench.device)
                for _ in "ab"
            ),
            "compiled": 1e3 * min(_seconds(objective, given[0], bench.device) for _ in range(3)),
        },
    }
    require(graphs == 1, f"{graphs} graphs were compiled for layers that are alike", figures)
    require(not figures["breaks"], f"the graph breaks: {figures['breaks']}", figures)
    require(not figures["graphs_of_later_batches"], "other sequences were compiled anew", figures)
    require(figures["loss_error"] <= _LOSS_TOLERANCE, f"losses are off by {figures['loss_error']:.2g}", figures)
    return figures


def check_graphs(bench: Bench) -> Figures:
    """Layers that are replayed as CUDA graphs: the plain losses, of batches that record and of those that replay."""
    rows, model = bench.sizes.rows, model_config(bench, dropout=False)
    given = batches(bench, _RECORDED + 2, rows)
    plain, replayed = (make_objective(bench, model, rows=rows, autocast=bench.autocast) for _ in ("plain", "replayed"))
    torch._dynamo.reset()
    replayed.has_graphs = True
    compile_layers(replayed.model.roformer, backend=bench.sizes.backend, cuda_graphs=True)
    losses, gradients = [], []
    for batch in given:  # compared at once: the next replay writes over gradients
        (loss, found), (plain_loss, expected) = (loss_and_gradients(each, batch) for each in (replayed, plain))
        losses.append(worst_error([loss], [plain_loss]))
        gradients.append(worst_error(found, expected))
    figures: Figures = {
        "loss_error": max(losses),
        "gradient_error": max(gradients),
        "ms": {
            "plain": 1e3 * min(_seconds(plain, given[0], bench.device) for _ in range(3)),
            "replayed": 1e3 * min(_seconds(replayed, given[0], bench.device) for _ in range(3)),
        },
    }
    require(figures["loss_error"] <= _LOSS_TOLERANCE, f"losses are off by {figures['loss_error']:.2g}", figures)
    require(
        figures["gradient_error"] <= _GRADIENT_TOLERANCE,
        f"gradients are off by {figures['gradient_error']:.2g}",
        figures,
    )
    return figures


CHECKS = (
    Check(name="recompute", minutes=0.4, run=check_recompute),
    Check(name="compile", minutes=0.7, run=check_compile),
    Check(name="cuda graphs", minutes=0.5, run=check_graphs),
)
