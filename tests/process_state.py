"""What a test must leave as it found it, since the tests after it run in the same process."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

_OTHERS = ("_pytest.", "prefect.")
"""Packages whose log handlers come and go with a test, or come with the first use in a process."""
_VARIABLES = {
    "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "HF_MODULES_CACHE", "HOME", "HOSTNAME", "KEXUE_WEBHOOK_URL",
    "OMP_NUM_THREADS", "PATH", "PYTHONHASHSEED", "PYTHONPATH", "RANK", "TMPDIR", "TOKENIZERS_PARALLELISM", "WORLD_SIZE",
}  # fmt: skip
_VARIABLES_OF = ("AWS_", "GLOO_", "GROUP_", "KEXUE_", "LOCAL_", "MASTER_", "NCCL_", "ROLE_", "SLURM_", "TORCHELASTIC_")
"""The variables, and beginnings of their names, that this project and its launchers read. Libraries set others of their
own once they are imported (Ray, DeepSpeed, torch's compiler), which changes nothing for the tests after."""


def process_state() -> dict[str, object]:
    """Return, by name, what changes the meaning of code that runs later in this process."""
    root, torch = logging.getLogger(), sys.modules.get("torch")
    state: dict[str, object] = {
        "working directory": Path.cwd(),
        "handler of SIGINT": signal.getsignal(signal.SIGINT),  # that of SIGTERM is Ray's own, anew with every node
        "level of the root logger": root.level,
        "handlers of the root logger": [
            type(handler).__name__ for handler in root.handlers if not type(handler).__module__.startswith(_OTHERS)
        ],
        "level that logging is disabled up to": logging.root.manager.disable,
        "loggers of the project that are not as they are made": _changed_loggers(),
    }
    state |= {
        f"environment variable {name}": value
        for name, value in os.environ.items()
        if name in _VARIABLES or name.startswith(_VARIABLES_OF)
    }
    if torch is not None and hasattr(torch, "get_default_dtype"):
        state |= {
            "torch: default dtype": torch.get_default_dtype(),
            "torch: deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
            "torch: gradients": torch.is_grad_enabled(),
            "torch: threads": torch.get_num_threads(),
            "torch: process group": torch.distributed.is_available() and torch.distributed.is_initialized(),
        }
    return state


def differences(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """Return what changed, one sentence each; what torch reports once it is imported is no change."""
    names = [name for name in before.keys() | after.keys() if name in before or not name.startswith("torch")]
    return [
        f"{name}: {before.get(name)!r} before, {after.get(name)!r} now"
        for name in sorted(names)
        if before.get(name) != after.get(name)
    ]


def _changed_loggers() -> list[str]:
    return [
        name
        for name, logger in sorted(logging.Logger.manager.loggerDict.items())
        if isinstance(logger, logging.Logger)
        and name.partition(".")[0] in ("kexue_train", "flows")
        and (logger.disabled or not logger.propagate or logger.level or logger.handlers)
    ]
