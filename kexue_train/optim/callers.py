"""Whether the code that calls an optimizer looks for gradients that are not there, or would scale them back.

An optimizer that folds gradients during backward leaves no ``.grad``; what clips by it finds nothing and says nothing,
and nothing of torch tells an optimizer that somebody has looked. So the calling functions are searched for the names.
"""

from __future__ import annotations

import sys
import warnings

_CLIPPING = {"clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_", "get_total_norm", "max_grad_norm"}


def warn_if_a_caller_clips() -> None:
    """Warn if a function in the stack of calls names one that clips gradients."""
    frame = sys._getframe(1)
    while frame is not None and not (found := _CLIPPING & set(frame.f_code.co_names)):
        frame = frame.f_back  # type: ignore[assignment]  # None above the first one
    if frame is not None:
        warnings.warn(
            f"{frame.f_code.co_name} in {frame.f_code.co_filename} uses {', '.join(sorted(found))}, which has no "
            "effect: gradients are folded into the momentum during backward, so none is there to clip. Clip with "
            'options=Options(clip_norm=...), or keep gradients with options=Options(accumulate="gradient")',
            UserWarning,
            stacklevel=2,
        )


def refuse_scaler(optimizer: object) -> None:
    """Refuse a ``GradScaler``, which leaves two things at an optimizer for the time of a step.

    Raises:
        RuntimeError: If it has.
    """
    if optimizer.__dict__.pop("found_inf", None) is not None:
        del optimizer.__dict__["grad_scale"]
        raise RuntimeError(
            "GradScaler cannot undo its scale: gradients are in the momentum, or add up over micro-batches or "
            "ranks. Train in bfloat16 or float32, which need no scaler; or take "
            'options=Options(accumulate="gradient"), one process and accumulation_steps=1'
        )
