"""Tiger: sign of one momentum, steps scaled by the size of each tensor, accumulation hidden in the momentum.

    opt = Tiger(build_param_groups(model), lr=1e-3, accumulation_steps=4)
    loss.backward(); opt.step()      # after every micro-batch; parameters move on the last one of a window

Source: https://kexue.fm/archives/9512, https://kexue.fm/archives/8634, github.com/bojone/tiger.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kexue_train.optim.param_groups import build_param_groups
    from kexue_train.optim.tiger import Tiger
    from kexue_train.optim.tiger_update import tiger_update_

__all__ = ["Tiger", "build_param_groups", "tiger_update_"]

_HOME = {"Tiger": "tiger", "build_param_groups": "param_groups", "tiger_update_": "tiger_update"}


def __getattr__(name: str) -> Any:
    """Import torch only when a name is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"kexue_train.optim.{_HOME[name]}"), name)
