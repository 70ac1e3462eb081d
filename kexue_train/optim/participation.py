"""Which tensors take part in a step, the same on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kexue_train.optim.param_groups import Tracked
from kexue_train.optim.ranks import any_over_ranks


class Participation(NamedTuple):
    """What the ranks have agreed on for one step."""

    trained: list[bool]
    """Which tensors move: those that require gradients and have one, of zero if it has to be, on any rank."""
    marked: list[bool]
    """Which tensors a rank has marked."""
    is_irregular: bool
    """Whether a rank said so."""


def agree_on_participation(
    tensors: Sequence[Tracked],
    *,
    trained: Sequence[bool],
    marked: Sequence[bool],
    is_irregular: bool = False,
    over_ranks: bool,
) -> Participation:
    """Agree on the tensors of a step; all ranks have to call it at the same place among their collective calls.

    Args:
        tensors: All of them.
        trained: Which of them this rank trains; one that requires no gradients it does not.
        marked: Which of them are to be known to all ranks.
        is_irregular: What else is to be known.
        over_ranks: False if this rank decides alone.

    Raises:
        ValueError: On every rank, if a tensor is trained on one and frozen on another: their replicas would differ.
    """
    if not over_ranks:
        return Participation(list(trained), list(marked), is_irregular)
    frozen = [not tensor.param.requires_grad for tensor in tensors]
    device, count = tensors[0].param.device, len(tensors)
    *flags, is_irregular = any_over_ranks([*trained, *frozen, *marked, is_irregular], device)
    trained, frozen, marked = flags[:count], flags[count : 2 * count], flags[2 * count :]
    if split := [t.name for t, moves, rests in zip(tensors, trained, frozen, strict=True) if moves and rests]:
        raise ValueError(
            f"{', '.join(split)}: requires_grad is False on some ranks only, so their replicas would drift apart; "
            "freeze a parameter on all ranks, before the same step"
        )
    return Participation(trained, marked, is_irregular)
