"""Other people's optimizers, for comparison with Tiger: LAMB and Lion of ``pytorch_optimizer``, AdamW of torch.

All as published, with decoupled or (LAMB) in-update weight decay, none of it for vectors.

* AdamW: Loshchilov and Hutter, https://arxiv.org/abs/1711.05101.
* LAMB: You et al., https://arxiv.org/abs/1904.00962, without bias correction: but for the balance with decay in
  the first steps it changes lengths only, which the trust ratio sets anyway. The norm of a tensor counts as it is; the
  library alone would count it as 10 at most, less than that of most embedding tables.
* Lion: Chen et al., https://arxiv.org/abs/2302.06675; learning rates 3 to 10 times below AdamW's, decay as much above.

LAMB needs whole tensors, as Tiger does; AdamW and Lion work element by element, on slices of tensors too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any, Literal, get_args

import torch

from kexue_train.foundation.errors import ResourceError
from kexue_train.optim.param_groups import Role

LibraryOptimizer = Literal["adamw", "lamb", "lion"]
_BETAS = {"adamw": (0.9, 0.999), "lamb": (0.9, 0.999), "lion": (0.9, 0.99)}


def build_library_optimizer(
    name: LibraryOptimizer,
    param_groups: Iterable[Mapping[str, Any]],
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] | None = None,
) -> torch.optim.Optimizer:
    """An optimizer of torch or ``pytorch_optimizer``, stepping after every window on ``.grad``.

    Args:
        name: "adamw", "lamb" or "lion".
        param_groups: Those of ``build_param_groups``: ``params`` and ``role``; vectors get no decay. Not changed.
        lr: Learning rate; write ``group["lr"]`` to follow a schedule.
        weight_decay: Of matrices and embeddings, multiplied by the learning rate.
        betas: Decays of both moments (Lion: in the step, in the momentum); None: those of the publication.

    Raises:
        ResourceError: If ``pytorch_optimizer`` is needed and not installed.
        ValueError: If there is no such name.
    """
    if name not in get_args(LibraryOptimizer):
        raise ValueError(f"no optimizer {name!r}; there are {', '.join(get_args(LibraryOptimizer))}")
    groups = [
        {**group, "weight_decay": 0.0 if group["role"] == Role.VECTOR else weight_decay} for group in param_groups
    ]
    betas = betas or _BETAS[name]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
    library = _import_pytorch_optimizer(name)
    if name == "lion":
        return library.Lion(groups, lr=lr, betas=betas)  # type: ignore[no-any-return]  # the library is not typed
    lamb = library.Lamb(groups, lr=lr, betas=betas, weight_decouple=False, adam_debias=True)
    lamb.clamp = math.inf
    return lamb  # type: ignore[no-any-return]  # the library is not typed


def _import_pytorch_optimizer(name: str) -> ModuleType:
    try:
        import pytorch_optimizer  # noqa: PLC0415  # optional, and seconds to import
    except ImportError:
        raise ResourceError(
            f"pytorch_optimizer is not installed, which the optimizer {name} comes from; "
            "install it with pip install 'kexue_train[optimizers]', or use tiger or adamw"
        ) from None
    return pytorch_optimizer  # type: ignore[no-any-return]  # the library is not typed
