"""Which Python code a model folder may have run: our own, known by its hash; any other if the user trusts the folder.

A folder says in ``auto_map`` of its configuration which of its files transformers imports. Weights and vocabularies
come from elsewhere, so opening a folder must not be the same as running it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from kexue_train.foundation.errors import EvaluationError
from kexue_train.model.released_code import is_our_code

_is_trusted: ContextVar[bool] = ContextVar("is_trusted", default=False)
_ADAPTER = "adapter_config.json"


@contextmanager
def trusting_code(is_trusted: bool) -> Iterator[None]:
    """Let the code of every folder that is opened meanwhile run, if the user has said so with ``--trust-code``."""
    token = _is_trusted.set(is_trusted)
    try:
        yield
    finally:
        _is_trusted.reset(token)


def may_run_code(folder: Path) -> bool:
    """Return whether transformers may import code for ``folder``: it has some, which is ours or which the user trusts.

    Raises:
        EvaluationError: If it has other code; the message names the file.
    """
    settings = {path.name: _read_json(path) for path in sorted(folder.glob("*.json"))}
    named = {file: _values_of(values, "auto_map") for file, values in settings.items()}
    kernels = {file: _values_of(values, "_implementation") for file, values in settings.items()}
    if _is_trusted.get():
        return any(named.values())
    for file, names in kernels.items():
        if elsewhere := next((name for name in names if "/" in name), None):
            raise _refusal(folder / file, f"has a kernel of {elsewhere!r} downloaded and run")
    for file, names in named.items():
        if elsewhere := next((name for name in names if not _is_in_folder(name)), None):
            raise _refusal(folder / file, f"has code from elsewhere run, {elsewhere!r}")
    if not any(named.values()):
        return False
    if _ADAPTER in settings:
        raise _refusal(folder / _ADAPTER, "has the code of another folder run")
    for path in sorted(folder.rglob("*.py")):
        if not is_our_code(path.read_bytes()):
            raise _refusal(path, "is Python code that no release of kexue_train has written")
    return True


def _refusal(path: Path, problem: str) -> EvaluationError:
    return EvaluationError(
        f"{path}: {problem}, and to open this folder is to run it; read it first, and if you trust it, run the command "
        "again with --trust-code. A model of kexue_train can be exported again instead, which writes its own code"
    )


def _is_in_folder(name: str) -> bool:
    """Return whether the name of a class, such as ``modeling_x.XModel``, is that of a file in the folder itself."""
    return all(part.isidentifier() for part in name.split("."))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):  # transformers says what is wrong with it, if it reads it at all
        return None


def _values_of(value: Any, key: str) -> set[str]:
    """Return every text that stands under a key that ends in ``key``, at any depth."""
    if isinstance(value, list):
        return set().union(*(_values_of(entry, key) for entry in value))
    if not isinstance(value, Mapping):
        return set()
    found = (_texts_in(entry) if str(name).endswith(key) else _values_of(entry, key) for name, entry in value.items())
    return set().union(*found)


def _texts_in(value: Any) -> set[str]:
    if isinstance(value, str):
        return {value}
    entries = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return set().union(*map(_texts_in, entries))
