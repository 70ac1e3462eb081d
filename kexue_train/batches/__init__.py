"""Sample shards -> micro-batches, as pure functions of (samples, seed, step): the same on any number of ranks.

open_samples.py (which folders) -> mixture.py (of them which one) -> order.py (which rows)
    -> dataset.py (their columns) -> collate.py (masks, slots) -> loader.py (ahead of time)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kexue_train.batches.order import rows_of_step

__all__ = ["rows_of_step"]


def __getattr__(name: str) -> Any:
    if name == "rows_of_step":
        from kexue_train.batches.order import rows_of_step  # noqa: PLC0415  # importing a package stays light

        return rows_of_step
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
