"""``python -m tests.oldest_versions``: the lower bounds of what data stages, model and export need, for pip."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

_EXTRAS = ("train", "report", "web")


def oldest_versions() -> list[str]:
    """Return ``package==lower bound`` of each dependency; every one must have such a bound."""
    pyproject = Path(__file__).resolve().parent.parent / "pyproject.toml"
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    needed = [
        *project["dependencies"],
        *(name for extra in _EXTRAS for name in project["optional-dependencies"][extra]),
    ]
    return [re.sub(r">=([^,;]+).*", r"==\1", requirement) for requirement in needed]


if __name__ == "__main__":
    print(*oldest_versions())  # noqa: T201  # the result of this command
