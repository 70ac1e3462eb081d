"""Which numbers a parameter group may hold; looked at when it is added and again in every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from kexue_train.optim.options import Options
from kexue_train.optim.param_groups import Tracked
from kexue_train.optim.rules import Rule


def _at_least_zero(value: float) -> bool:
    return 0 <= value < math.inf


_ALLOWED: dict[str, tuple[str, Callable[[float], bool]]] = {
    "lr": ("at least 0 and finite", _at_least_zero),
    "beta": ("at least 0 and below 1", lambda value: 0 <= value < 1),
    "beta2": ("at least 0 and below 1", lambda value: 0 <= value < 1),
    "eps": ("above 0 and finite", lambda value: 0 < value < math.inf),
    "weight_decay": ("at least 0 and finite", _at_least_zero),
    "rms_floor": ("at least 0 and finite", _at_least_zero),
    "dead_zone": ("at least 0 and finite", _at_least_zero),
}
_OF_ALL_GROUPS = {"accumulation_steps", "options", *(field.name for field in fields(Options))}


def check_settings(settings: Mapping[str, Any], *, where: str) -> None:
    """Refuse settings of a group that cannot be meant.

    Args:
        settings: ``lr`` may be a tensor of one number, which is looked at if it is on a CPU.
        where: For the message, "parameter group 0".

    Raises:
        ValueError: If a number is out of range, or a key is of the whole optimizer.
        TypeError: If a setting is no number.
    """
    if misplaced := _OF_ALL_GROUPS & settings.keys():
        raise ValueError(f"{where}: {', '.join(sorted(misplaced))} cannot be set by group; give it to the optimizer")
    for name, (allowed, is_allowed) in _ALLOWED.items():
        if name not in settings:
            continue
        value = settings[name]
        if isinstance(value, Tensor) and name == "lr":
            if value.numel() != 1:
                raise ValueError(f"{where}: Tensor lr must be 1-element, got {value.numel()} numbers")
            if value.device.type != "cpu":
                continue
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{where}: {name}={value!r} is no number; it must be {allowed}")
        if not is_allowed(float(value)):
            raise ValueError(f"{where}: {name}={value!r} is out of range; it must be {allowed}")


def follow_groups(groups: Sequence[dict[str, Any]], rules: list[Rule], tensors: Sequence[Tracked]) -> bool:
    """Let rules follow the numbers of their groups; return whether one of them has changed.

    Args:
        groups: As an optimizer has them.
        rules: One for each; exchanged where a number has changed, as those of its tensors are.
        tensors: All parameters of the groups, in their order.

    Raises:
        ValueError: If a setting is out of range, or parameters or a role were exchanged.
        TypeError: If a setting is no number.
    """
    params = [param for group in groups for param in group["params"]]
    if len(params) != len(tensors) or any(p is not t.param for p, t in zip(params, tensors, strict=True)):
        raise ValueError("the parameters of a group were exchanged; build another optimizer, or add_param_group")
    has_changed = False
    for number, (group, rule) in enumerate(zip(groups, rules, strict=True)):
        check_settings(group, where=f"parameter group {number}")
        own = [tensor for tensor in tensors if tensor.group == number]
        if group["role"] and any(tensor.role != group["role"] for tensor in own):
            raise ValueError(f"parameter group {number}: the role is now {group['role']}; a role is set once")
        new = rule.with_settings(group)
        if new != rule:
            rules[number], has_changed = new, True
            for tensor in own:
                tensor.rule = new
    return has_changed


def check_accumulation_steps(value: object) -> int:
    """Return the number of micro-batches per step.

    Raises:
        ValueError: If it is not a whole number of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"accumulation_steps must be a whole number of at least 1, got {value!r}")
    return int(value)
