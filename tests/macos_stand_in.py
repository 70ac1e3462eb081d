"""``python -m tests.macos_stand_in ARGUMENTS``: the command ``kexue`` on this machine with what macOS lacks taken away.

No Mac is involved: this shows that nothing here needs what only Linux has, not that everything runs on macOS. Libraries
are loaded first, since their builds for Linux need Linux.
"""

from __future__ import annotations

import ctypes
import os
import select
import sys
from types import SimpleNamespace
from typing import Any

_ABSENT = (
    "copy_file_range", "eventfd", "memfd_create", "pidfd_open", "posix_fadvise", "posix_fallocate", "preadv",
    "sched_getaffinity", "sched_setaffinity", "setns", "splice", "unshare",
)  # fmt: skip
_FOLDERS = ("/proc/", "/sys/", "/dev/shm")
_OF_LIBRARIES = ("site-packages", "lib/python")
_HIDDEN_MODULES = ("triton",)


def _refuse_folders(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in ("open", "os.listdir", "os.scandir") or not str(arguments[0]).startswith(_FOLDERS):
        return
    frame = sys._getframe(1)
    while "pathlib" in frame.f_code.co_filename or "tempfile" in frame.f_code.co_filename:
        assert frame.f_back
        frame = frame.f_back
    if not any(part in frame.f_code.co_filename for part in _OF_LIBRARIES):
        raise FileNotFoundError(2, "No such file or directory", arguments[0])


def become_mac() -> None:
    """Take away from this process what macOS lacks."""
    import psutil  # noqa: F401
    import torch.distributed  # noqa: F401
    import transformers  # noqa: F401

    from kexue_train.foundation import operating_system

    for name in _ABSENT:
        if hasattr(os, name):
            delattr(os, name)
    for name in ("epoll", "EPOLLIN"):
        delattr(select, name)
    sys.modules |= dict.fromkeys(_HIDDEN_MODULES)  # type: ignore[arg-type]  # importing such a name fails
    library = ctypes.CDLL
    ctypes.CDLL = lambda name, *more, **named: library(name, *more, **named) if name else SimpleNamespace()  # type: ignore
    sys.addaudithook(_refuse_folders)
    operating_system.sys = SimpleNamespace(platform="darwin", maxsize=sys.maxsize)  # the only file that asks


if __name__ == "__main__":
    become_mac()
    from kexue_train.cli.app import main

    main()
