"""The configurations that come with the package, which are known by their names: ``--config demo``."""

from __future__ import annotations

import difflib
from pathlib import Path

from kexue_train.foundation.errors import ConfigError

FOLDER = Path(__file__).parent.parent / "configs"
"""A link to the folder ``configs`` of the repository; a wheel holds the files themselves."""


def find_config(path: Path) -> tuple[Path, Path]:
    """Return the file of a configuration, and the path that it has for the relative paths in it.

    Args:
        path: A file; or the name of a shipped configuration, such as ``demo``, which is taken as if it lay in
            ``configs/`` of the current folder.

    Raises:
        ConfigError: If it is a bare name, and neither a file nor shipped.
    """
    if path.exists() or path.suffix or path.name != str(path):
        return path, path
    names = shipped_configs()
    if path.name in names:
        shipped = FOLDER / f"{path.name}.yaml"
        return shipped, Path("configs", shipped.name)
    near = difflib.get_close_matches(path.name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else "give the path of a run's YAML file, or one of these names"
    raise ConfigError(f"{path}: no such configuration file, and none of {', '.join(names)} that are shipped; {hint}")


def shipped_configs() -> list[str]:
    """Return the names, sorted."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))
