"""The parameters of an optimizer: which rule of Tiger each follows, by the type of its module and never by its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

if TYPE_CHECKING:
    from kexue_train.optim.rules import Rule


class Role(StrEnum):
    """How Tiger scales a parameter's step."""

    MATRIX = "matrix"
    """Times the root mean square of the whole tensor; decayed."""
    EMBEDDING = "embedding"
    """Times the root mean square of each row; decayed."""
    VECTOR = "vector"
    """Biases and gains: half the learning rate, no scaling, no decay."""


def build_param_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Make one optimizer group per role, parameters in the model's order; a tied table counts as embedding.

    Each group has ``params``, ``names`` and ``positions`` (of the model's parameters) and ``role``.
    """
    tables = {
        id(p)
        for m in model.modules()
        if isinstance(m, nn.Embedding | nn.EmbeddingBag)
        for p in m.parameters(recurse=False)
    }
    groups: dict[Role, dict[str, Any]] = {
        role: {"params": [], "names": [], "positions": [], "role": role} for role in Role
    }
    for position, (name, parameter) in enumerate(model.named_parameters()):
        if not parameter.requires_grad:
            continue
        role = Role.EMBEDDING if id(parameter) in tables else Role.MATRIX if parameter.ndim >= 2 else Role.VECTOR
        groups[role]["params"].append(parameter)
        groups[role]["names"].append(name)
        groups[role]["positions"].append(position)
    return [group for group in groups.values() if group["params"]]


@dataclass
class Tracked:
    """One parameter with what its optimizer keeps of it."""

    index: int
    name: str
    param: Tensor
    role: Role
    rule: Rule
    position: int
    """Place among the model's parameters; backward meets the last ones first."""
    group: int = 0
    """Which parameter group it is in."""
    moments: tuple[Tensor, ...] = ()
    place: int = 0
    """Place of its moments in the flat tensor of all moments."""
    folded: bool = False
    """Whether a gradient of the open step has been met."""
    rests: bool = False
    """Whether the step that ends leaves it alone, and its moments."""


def track(group: dict[str, Any], rule: Rule, *, number: int, first: int, bf16: bool) -> list[Tracked]:
    """List the parameters of one group.

    Args:
        group: Made by ``build_param_groups``, or without ``names``, ``positions`` and ``role``: then these follow from
            the order and the shape. ``param_names``, as torch keeps them, are names too.
        rule: What the group follows.
        number: Which group it is.
        first: Index of its first parameter.
        bf16: Whether weights must be bfloat16.

    Raises:
        ValueError: If a parameter cannot be trained, by name.
    """
    params = group["params"]
    if len({id(param) for param in params}) < len(params):
        raise ValueError(f"parameter group {number} has the same parameter more than once; name it once")
    indices = range(first, first + len(params))
    names = group.get("names") or group.get("param_names") or [f"parameter {index}" for index in indices]
    positions = group.get("positions") or indices
    tracked = []
    for index, name, param, position in zip(indices, names, params, positions, strict=True):
        check_parameter(name, param, bf16=bf16)
        role = Role(group["role"]) if group["role"] else Role.MATRIX if param.ndim >= 2 else Role.VECTOR
        if role is not Role.VECTOR and not param.ndim:
            raise ValueError(f"{name} is a single number; its role is {Role.VECTOR}, not {role}")
        tracked.append(Tracked(index, name, param, role, rule, position, group=number))
    return tracked


def check_parameter(name: str, param: Tensor, *, bf16: bool) -> None:
    """Refuse what cannot be trained.

    Raises:
        ValueError: With the reason.
    """
    if is_lazy(param):
        raise ValueError(f"{name} has no shape yet; run the model once before its optimizer is built")
    if _is_wrapper(param):
        raise ValueError(
            f"{name} is a {type(param).__name__}, of which a rank may have a part only; steps need whole tensors. Take "
            "plain tensors on every rank, or ZeRO by `kexue train`"
        )
    if param.layout is not torch.strided:
        raise ValueError(f"{name} is {param.layout}; only dense tensors are trained, call .to_dense() on it")
    if param.device.type == "meta":
        raise ValueError(f"{name} is on the meta device and has no values; give it some (.to_empty) before training")
    if param.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise ValueError(
            f"{name} is {param.dtype}; float32, float64 and, with bf16_states=True, bfloat16 are trained. Of a complex "
            "tensor train torch.view_as_real"
        )
    if not param.is_contiguous():
        raise ValueError(f"{name} is not contiguous in memory; call .contiguous() on it before training")
    if (param.dtype == torch.bfloat16) != bf16 or param.dtype == torch.float16:
        raise ValueError(
            f"{name} is {param.dtype}: rounding to the nearest would lose most steps of half-precision weights (96 % "
            "of them in bfloat16 at a learning rate of 1e-4). Keep fp32 weights under torch.autocast, or take "
            "bf16_states=True, which needs bfloat16 weights and rounds them stochastically"
        )


def _is_wrapper(param: Tensor) -> bool:
    return is_traceable_wrapper_subclass(param)  # in a function, or mypy holds that none can be a Tensor


def check_alike(tensors: Sequence[Tracked]) -> None:
    """Refuse parameters of several dtypes or on several devices, whose moments have no common flat tensor.

    Raises:
        ValueError: If there are such, or no parameters at all.
    """
    if not tensors:
        raise ValueError("the optimizer has no parameters; do all of the model's require no gradients?")
    first = tensors[0]
    for other in tensors:
        if (other.param.dtype, other.param.device) != (first.param.dtype, first.param.device):
            raise ValueError(
                f"{first.name} is {first.param.dtype} on {first.param.device}, but {other.name} is "
                f"{other.param.dtype} on {other.param.device}; one optimizer trains tensors of one dtype on one "
                "device, so build one for each"
            )
