"""How often the host waits for the device within micro-steps: never, or it could not run ahead."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from benchmarks.gpu.check import Bench, Check, Figures, require
from benchmarks.gpu.made_up import batches, make_objective, model_config
from kexue_train.model.recompute import compile_layers, enable_recompute
from kexue_train.optim.build import build_optimizer
from kexue_train.optim.config import OptimizerConfig
from kexue_train.train.engine import TorchEngine

_SAYS_SO = "called a synchronizing"
_MICRO_BATCHES = 2


def check_host_waits(bench: Bench) -> Figures:
    """Two steps of two micro-batches, after one that warms up: plain, recomputed and compiled, lazy rows too."""
    figures: Figures = {}
    for name, compiled, recompute, embeddings in (
        ("plain", False, False, "same"), ("lazy rows, recomputed", False, True, "lazy"),
        ("compiled", True, False, "same"),
    ):  # fmt: skip
        objective = make_objective(bench, model_config(bench), rows=bench.sizes.rows, autocast=bench.autocast)
        if recompute:
            enable_recompute(objective.model.roformer, "full")
        if compiled:
            compile_layers(objective.model.roformer, backend=bench.sizes.backend)
        settings = OptimizerConfig.model_validate({"embeddings": embeddings})
        optimizer = build_optimizer(settings, objective.model, accumulation_steps=_MICRO_BATCHES, seed=0)
        engine, given = TorchEngine(objective, optimizer), batches(bench, 3 * _MICRO_BATCHES, bench.sizes.rows)
        for batch in given[:_MICRO_BATCHES]:
            engine.micro_step(batch)
        with host_waits(bench) as count:
            for batch in given[_MICRO_BATCHES:]:
                optimizer.observe_tokens(batch["input_ids"], batch["prediction_labels"])
                engine.micro_step(batch)
        figures[name] = dict(count())
        require(not figures[name], f"{name}: the host waits for the device at {figures[name]}", figures)
    return figures


@contextmanager
def host_waits(bench: Bench) -> Iterator[Callable[[], Counter[str]]]:
    """Count by line the waits that torch reports; a CPU stands in with what warns by the same words."""
    found: Counter[str] = Counter()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if not bench.is_stand_in:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield lambda: found
        finally:
            if not bench.is_stand_in:
                torch.cuda.set_sync_debug_mode("default")
            found.update(f"{w.filename}:{w.lineno}" for w in said if _SAYS_SO in str(w.message))


CHECKS = (Check(name="host waits", minutes=0.5, run=check_host_waits),)
