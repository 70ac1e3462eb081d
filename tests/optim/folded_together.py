"""A storage that lets gradients wait as ``FusedTensors`` does, and computes with plain torch on a CPU."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from kexue_train.optim.param_groups import Tracked
from kexue_train.optim.random_bits import Rounding
from kexue_train.optim.step_sizes import ScalarLayout
from kexue_train.optim.waiting_gradients import FoldSettings, WaitingGradients
from kexue_train.optim.whole_tensors import WholeTensors


class FoldedTogether(WholeTensors):
    """Takes the place of ``choose_storage``; up to eight gradients are folded at a time."""

    def __init__(self, tensors: list[Tracked], layout: ScalarLayout, flags: Tensor, **_: bool) -> None:
        super().__init__(tensors, layout)
        self._flags = flags
        self.waiting = WaitingGradients(self._fold_all, most=8)

    def fold(self, index: int, grad: Tensor, *, is_first: bool, share: float, rounding: Rounding) -> bool:
        self.waiting.add(index, grad, FoldSettings(float(is_first), share, rounding))
        return False

    def flush(self) -> None:
        self.waiting.fold()

    def _fold_all(self, gradients: Mapping[int, Tensor], settings: FoldSettings) -> None:
        is_first, share, rounding = settings
        for index, grad in gradients.items():
            bad = super().fold(index, grad, is_first=bool(is_first), share=share, rounding=rounding)
            if bad:
                self._flags[index] = 1.0
