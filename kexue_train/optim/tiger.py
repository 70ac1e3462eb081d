"""Tiger (https://kexue.fm/archives/9512): the sign of one momentum, steps scaled by the size of each tensor.

Deviations from github.com/bojone/tiger, each on purpose: a micro-batch whose gradient is NaN *or Inf* is left out of
the momentum of that tensor, and the shrink happens once, at the end of the step, on every rank alike (the original
tests NaN only and shrinks at once, which would let replicas drift apart); sizes below ``rms_floor`` count as that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from kexue_train.optim.accumulation import HiddenAccumulation
from kexue_train.optim.group_settings import check_settings
from kexue_train.optim.options import Options
from kexue_train.optim.tiger_update import RMS_FLOOR, TigerRule


class Tiger(HiddenAccumulation):
    """A ``HiddenAccumulation`` whose rule is Tiger's: one state tensor per parameter, accumulation included.

    Only the constructor is its own: all that follows is ``HiddenAccumulation``, for any rule.

    Args:
        params: Groups of ``build_param_groups``, or plain parameters (then the role follows from the shape).
        lr: Learning rate relative to the size of a tensor; 1e-3 to 2e-3 is usual. A number or a tensor of one.
        beta: Decay of the momentum per step, in [0, 1).
        weight_decay: Decoupled decay of matrices and embeddings.
        accumulation_steps: Micro-batches per step.
        rms_floor: Least root mean square of a tensor or row; above 0, otherwise zeros would stay zeros.
        dead_zone: Momenta below this in size move nothing.
        options: See ``Options``.

    Raises:
        ValueError: If an argument is out of range, a parameter cannot be trained, or another optimizer has it.
        TypeError: If a setting is no number.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        beta: float = 0.965,
        weight_decay: float = 0.01,
        accumulation_steps: int = 1,
        *,
        rms_floor: float = RMS_FLOOR,
        dead_zone: float = 0.0,
        options: Options = Options(),  # noqa: B008  # frozen
    ) -> None:
        defaults = {
            "lr": lr, "beta": beta, "weight_decay": weight_decay, "rms_floor": rms_floor, "dead_zone": dead_zone
        }  # fmt: skip
        check_settings(defaults, where="Tiger")
        if not lr:
            raise ValueError(f"Tiger: {lr=} moves nothing; it must be above 0 (a schedule may set 0 later)")
        super().__init__(
            params,
            TigerRule(beta, rms_floor, dead_zone),
            defaults,
            accumulation_steps=accumulation_steps,
            options=options,
        )
