"""A whole run: its configuration, its stages in data order, what is complete, what it will take, new data."""

import importlib
from typing import Any

_NAMES = {
    "Run": "kexue_train.pipeline.run",
    "StageResult": "kexue_train.pipeline.run",
    "is_complete": "kexue_train.pipeline.run",
    "open_run": "kexue_train.pipeline.run",
    "run_stage": "kexue_train.pipeline.run",
    "STAGES": "kexue_train.pipeline.stages",
    "last_checkpoint": "kexue_train.train.stage",
}


def __getattr__(name: str) -> Any:
    """Import what is used from here, and no more: the configuration alone has to stay light."""
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_NAMES[name]), name)
