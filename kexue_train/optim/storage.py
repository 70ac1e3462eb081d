"""Where parameters and moments lie, and who does the arithmetic there."""

from __future__ import annotations

import logging
from functools import lru_cache
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor

from kexue_train.optim.param_groups import Tracked
from kexue_train.optim.random_bits import Rounding
from kexue_train.optim.step_sizes import ScalarLayout, StepSizes
from kexue_train.optim.tiger_update import TigerRule
from kexue_train.optim.whole_tensors import WholeTensors

logger = logging.getLogger(__name__)


class TensorStorage(Protocol):
    """Where parameters and moments lie: whole (``WholeTensors``, ``FusedTensors``) or in slices (``TensorSlices``)."""

    def fold(self, index: int, grad: Tensor, *, is_first: bool, share: float, rounding: Rounding) -> Tensor | bool:
        """Take the gradient of a micro-batch into the moments of the ``index``-th tensor or slice.

        Args:
            index: Which of the tensors or slices.
            grad: As many elements.
            is_first: Whether it is the first of its step, which the moments decay with.
            share: Weight of the micro-batch in the step.
            rounding: For bf16 moments.

        Returns:
            Whether the gradient was not finite, and the moments stay as they were.
        """
        ...

    def flush(self) -> None:
        """Fold what ``fold`` has taken and not folded yet; after every backward there is nothing of that kind.

        Before somebody reads moments, or flags of bad gradients, within a backward, he has to call it.
        """
        ...

    def sum_squares(self) -> Tensor:
        """Return the sums of squares of the whole parameters, [total] of the layout."""
        ...

    def sum_absolutes(self) -> Tensor:
        """Return the sums of absolute values of the whole matrices, [total] of the layout; others do not matter."""
        ...

    def move(self, sizes: StepSizes, *, step: int, rounding: Rounding) -> None:
        """Move the parameters by step number ``step``, counted from 1, but for those that rest."""
        ...


def choose_storage(
    tensors: list[Tracked], layout: ScalarLayout, flags: Tensor, *, shifts: bool = False
) -> TensorStorage:
    """Take kernels over all tensors at once where there are a GPU, Triton and nothing but one rule of Tiger.

    The kernels know no ``StepSizes.shift``.
    """
    moments, rules = tensors[0].moments[0], {tensor.rule for tensor in tensors}
    usable = not shifts and moments.is_cuda and moments.dtype != torch.float64 and find_spec("triton") is not None
    if not usable or len(rules) > 1 or not isinstance(tensors[0].rule, TigerRule) or not _triton_works(moments.device):
        return WholeTensors(tensors, layout)
    from kexue_train.optim.fused_tiger import FusedTensors  # noqa: PLC0415  # Triton is there with CUDA only

    return FusedTensors(tensors, tensors[0].rule, layout, flags)


@lru_cache
def _triton_works(device: torch.device) -> bool:
    """Whether a kernel runs; only a trial can tell: a C compiler or Python's headers may be missing."""
    from kexue_train.optim.fused_tiger import try_kernel  # noqa: PLC0415  # Triton is there with CUDA only

    try:
        try_kernel(device)
    except Exception as error:  # noqa: BLE001  # Triton's own, a compiler's, a driver's
        logger.warning(
            "Triton's kernels do not run on %s (%s), so the optimizer takes plain torch operations, which give the "
            "same numbers and take longer; 'kexue doctor' tells what Triton needs",
            device, str(error).partition("\n")[0] or type(error).__name__,
        )  # fmt: skip
        return False
    return True
