"""The form in which an optimizer's state is saved: torch's, with what is known of an open step beside it.

    state           by number of the parameter: its moments
    param_groups    all keys of each group, ``params`` as numbers, and ``steps`` done
    filled, folded, nonfinite, seen     of the open step, if saved by ``state_dict``; torch's tools drop them

Before, ``steps`` lay beside them and groups had no ``params``; that is still read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kexue_train.optim.group_settings import check_settings
from kexue_train.optim.param_groups import Tracked

_OWN_KEYS = {"params", "names", "positions"}
"""Keys of a group that a saved one does not replace."""


def check_fits(state_dict: Mapping[str, Any], *, tensors: int, accumulation_steps: int) -> int:
    """Return how many micro-batches the state is into a step.

    Raises:
        ValueError: If an optimizer of so many tensors and micro-batches per step cannot go on from there.
    """
    found = sum(len(group.get("params", ())) for group in state_dict.get("param_groups", ()))
    found = found or len(state_dict.get("state", ()))
    if found != tensors:
        raise ValueError(f"the states of {found} parameters do not match this optimizer's {tensors} parameters")
    filled: int = state_dict.get("filled", 0)
    if filled >= accumulation_steps:
        raise ValueError(
            f"the state is {filled} micro-batches into a step, this optimizer's steps have "
            f"{accumulation_steps}; give it the accumulation that the state was saved with"
        )
    return filled


def with_own_moments(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state with copies of its moments: they are views of one tensor, which pickle would store with each."""
    copies = {
        index: {kind: value.clone() for kind, value in state.items()} for index, state in state_dict["state"].items()
    }
    return {**state_dict, "state": copies}


def as_torch_saves(state_dict: Mapping[str, Any], group_sizes: Sequence[int]) -> dict[str, Any]:
    """Return a state with ``params`` and ``steps`` in every group, whenever it was saved.

    Raises:
        ValueError: If it is no state of an optimizer, or does not say at which step it was saved.
    """
    missing = {"state", "param_groups"} - state_dict.keys()
    if missing:
        raise ValueError(f"this is no state of an optimizer: {', '.join(sorted(missing))} is missing")
    groups, first = [], 0
    for number, saved in enumerate(state_dict["param_groups"]):
        group = dict(saved)
        if "params" not in group and number < len(group_sizes):
            group["params"] = list(range(first, first + group_sizes[number]))
        first += len(group.get("params", ()))
        if "steps" not in group:
            if "steps" not in state_dict:
                kinds = sorted({kind for state in state_dict["state"].values() for kind in state})
                raise ValueError(
                    f"the state keeps {', '.join(kinds) or 'nothing'} and no number of steps: it was saved by another "
                    "optimizer than this one"
                )
            group["steps"] = state_dict["steps"]
        groups.append(group)
    return {**state_dict, "param_groups": groups}


@torch.no_grad()
def copy_state_(
    tensors: Sequence[Tracked],
    groups: Sequence[dict[str, Any]],
    state: Mapping[Tensor, Mapping[str, Tensor]],
    saved_groups: Sequence[Mapping[str, Any]],
) -> None:
    """Copy moments into those of the tensors and settings into their groups, all or nothing.

    Args:
        tensors: All of an optimizer.
        groups: Its parameter groups.
        state: Moments by parameter and name; one that is frozen needs none.
        saved_groups: As many groups of as many parameters.

    Raises:
        ValueError: By name, if they are those of other parameters or of another optimizer.
        TypeError: If a setting is no number.
    """
    _check_moments(tensors, state)
    for number, (own, saved) in enumerate(zip(groups, saved_groups, strict=True)):
        check_settings(saved, where=f"parameter group {number} of the state")
        if saved.get("role", own["role"]) != own["role"]:
            raise ValueError(f"parameter group {number} has the role {own['role']}, in the state {saved['role']}")
    for own, saved in zip(groups, saved_groups, strict=True):
        own.update({key: value for key, value in saved.items() if key not in _OWN_KEYS})
    for tensor in tensors:
        for kind, moment in zip(tensor.rule.moments, tensor.moments, strict=True):
            if tensor.param in state:
                moment.copy_(state[tensor.param][kind.name])


def _check_moments(tensors: Sequence[Tracked], state: Mapping[Tensor, Mapping[str, Tensor]]) -> None:
    for tensor in tensors:
        wanted = {moment.name for moment in tensor.rule.moments}
        found = state.get(tensor.param, {})
        if not found and not tensor.param.requires_grad:
            continue
        if set(found) != wanted:
            raise ValueError(
                f"the state of {tensor.name} is {', '.join(sorted(found)) or 'missing'}, this optimizer keeps "
                f"{', '.join(sorted(wanted))}; it was saved by another optimizer"
            )
        for kind, value in found.items():
            if value.shape != tensor.param.shape:
                raise ValueError(
                    f"the {kind} of {tensor.name} is {list(value.shape)}, the parameter {list(tensor.param.shape)}"
                )
