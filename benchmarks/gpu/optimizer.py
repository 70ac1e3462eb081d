"""Tiger's kernels against plain Tiger: the same gradients in, the same weights and momenta out."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.gpu.check import Bench, Check, Figures, require
from benchmarks.gpu.made_up import make_objective, model_config, worst_error
from kexue_train.optim import accumulation
from kexue_train.optim.build import build_optimizer
from kexue_train.optim.config import OptimizerConfig
from kexue_train.optim.param_groups import Tracked
from kexue_train.optim.step_sizes import ScalarLayout
from kexue_train.optim.whole_tensors import WholeTensors

_CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16 states": {"states": "bf16"},
    "dead zone": {"dead_zone": 1e-4},
    "gradient dropout": {"gradient_keep": 0.5},
    "clipping": {"clip": {"norm": 0.5}},
    "weissi": {"weissi": 0.1},
    "lazy rows": {"embeddings": "lazy"},
    "accumulated gradient": {"accumulate": "gradient"},
}
_TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-3}
"""Of the norm of a tensor; in bf16 a sum that rounds otherwise moves a few elements by their last bit."""
_MICRO_BATCHES = 2
_LATE_STEP = 100
"""From here on a stream needs 64 bits."""
_BAD = 3
"""Which micro-batch has a gradient with a NaN."""


def check_kernels(bench: Bench) -> Figures:
    """Every option, a bad gradient on the way, and steps before and after micro-step 128."""
    figures: Figures = {}
    for name, settings in _CASES.items():
        config = OptimizerConfig.model_validate({"weight_decay": 0.01, "schedule": {"1": 1.0}, **settings})
        dtype = torch.bfloat16 if config.states == "bf16" else torch.float32
        fused, storage = _train(bench, config, dtype)
        with mock.patch.object(accumulation, "choose_storage", _plain_storage):
            plain, _ = _train(bench, config, dtype)
        figures[name] = {"storage": storage, "error": worst_error(fused, plain)}
        require(
            bench.is_stand_in or storage == "FusedTensors",
            f"{name}: {storage} moved the tensors, not the kernels",
            figures,
        )
        require(
            figures[name]["error"] <= _TOLERANCE[dtype],
            f"{name}: the kernels are off by {figures[name]['error']:.2g} of a tensor's norm",
            figures,
        )
    return figures


def _plain_storage(tensors: list[Tracked], layout: ScalarLayout, _: Tensor, **__: bool) -> WholeTensors:
    return WholeTensors(tensors, layout)


def _train(bench: Bench, config: OptimizerConfig, dtype: torch.dtype) -> tuple[list[Tensor], str]:
    """Return all weights and moments after some steps on random gradients, and who moved them."""
    model = make_objective(
        bench, model_config(bench, num_hidden_layers=1), rows=1, autocast=bench.autocast, dtype=dtype
    ).model
    optimizer = build_optimizer(config, model, accumulation_steps=_MICRO_BATCHES, seed=7)
    generator = torch.Generator().manual_seed(0)
    for number, start in enumerate((0, 0, _LATE_STEP, _LATE_STEP)):
        if number in (0, 2):
            optimizer.restart_at(start)
        for micro in range(_MICRO_BATCHES):
            optimizer.observe_tokens(torch.arange(0, 40, device=bench.device))
            _give_gradients(model, generator, spoil=number * _MICRO_BATCHES + micro == _BAD)
            optimizer.step()
    storage: Any = optimizer
    moments = optimizer.named_moments().values()
    return [param.detach().clone() for param in [*model.parameters(), *moments]], type(storage.storage).__name__


def _give_gradients(model: nn.Module, generator: torch.Generator, *, spoil: bool) -> None:
    for index, param in enumerate(model.parameters()):
        gradient = torch.randn(param.shape, generator=generator).mul_(1e-2)
        if spoil and index == 2:
            gradient.view(-1)[-1] = torch.nan
        param.grad = gradient.to(param.device, param.dtype)


CHECKS = (Check(name="optimizer kernels", minutes=0.5, run=check_kernels),)
