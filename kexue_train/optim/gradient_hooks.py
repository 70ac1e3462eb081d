"""Who takes the gradient of a parameter: one optimizer at a time, by hooks that end with it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

_OWNERS = WeakTensorKeyDictionary()
"""Which optimizer, weakly held, takes the gradients of a parameter. In here, not on the parameter, as whatever lies
there is pickled with it."""


class GradientHooks:
    """The hooks of one optimizer; it is held weakly, so when it goes they go.

    Args:
        owner: The optimizer.
        take: Called as ``take(owner, index, param)`` as soon as backward has added to ``param.grad``.
    """

    def __init__(self, owner: object, take: Callable[[Any, int, Tensor], None]) -> None:
        self._owner, self._take = weakref.ref(owner), take
        self._handles: dict[int, RemovableHandle] = {}
        weakref.finalize(owner, _remove, self._handles).atexit = False

    def claim(self, names: Sequence[str], params: Sequence[Tensor]) -> None:
        """Make the optimizer the only one of these parameters.

        Raises:
            ValueError: If a living optimizer already takes the gradients of one of them.
        """
        for name, param in zip(names, params, strict=True):
            if self._is_taken(param):
                gc.collect()  # it may be gone for everybody but the collector
                if self._is_taken(param):
                    raise ValueError(
                        f"another optimizer already takes the gradients of {name}; build one optimizer per model, or "
                        "delete the old one first (`del optimizer`)"
                    )
        for param in params:
            _OWNERS[param] = self._owner

    def hook(self, index: int, param: Tensor) -> None:
        """Take the gradients of ``param`` from now on, if that is not so already; it must require gradients."""
        if index not in self._handles:
            deliver = partial(_deliver, self._owner, self._take, index)
            self._handles[index] = param.register_post_accumulate_grad_hook(deliver)  # type: ignore[no-untyped-call]

    def _is_taken(self, param: Tensor) -> bool:
        owner = _OWNERS[param]() if param in _OWNERS else None
        return owner is not None and owner is not self._owner()


def _deliver(owner: weakref.ref[object], take: Callable[[Any, int, Tensor], None], index: int, param: Tensor) -> None:
    living = owner()
    if living is not None:
        take(living, index, param)


def _remove(handles: dict[int, RemovableHandle]) -> None:
    for handle in handles.values():
        handle.remove()
