"""``python -m tests.pins``: constraints.txt as ``requirements.lock`` determines it; ``make lock`` writes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"
_HEADER = """\
# Exact versions, for pip install -c constraints.txt. Made of requirements.lock by "make lock"; do not edit.
# It leaves out the CUDA libraries: which of them are needed depends on the build of torch.
"""
_OF_CUDA = ("cuda-", "nvidia-")


def read_lock() -> Mapping[str, str]:
    """Return the version of every package that ``requirements.lock`` names, for whatever system and Python."""
    return dict(re.findall(r"^([a-z0-9-]+)==([^ ]+)", _LOCK.read_text(encoding="utf-8"), re.MULTILINE))


def constraints() -> str:
    """Return the contents of ``constraints.txt``."""
    pins = (f"{name}=={version}\n" for name, version in read_lock().items() if not name.startswith(_OF_CUDA))
    return _HEADER + "".join(pins)


if __name__ == "__main__":
    print(constraints(), end="")  # noqa: T201  # the result of this command
