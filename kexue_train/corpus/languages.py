"""Guesses the language of a text with py3langid: naive Bayes over n-grams of bytes, 97 languages, no network."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from kexue_train.foundation.errors import ResourceError

PACKAGE = "py3langid"
_LOOKED_AT_CHARS = 4096
"""More text makes no guess better."""


def require_identifier() -> None:
    """Look whether the package is there, without loading it.

    Raises:
        ResourceError: If it is not.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise ResourceError(
            f"languages: {PACKAGE} is not installed, which tells them; install it with pip install "
            "'kexue_train[languages]', or leave languages (shuffle.languages) out: scripts are counted without it"
        )


def open_identifier() -> tuple[str, Callable[[str], str]]:
    """Return name and version of the identifier, and the function that gives a text's ISO 639-1 code, such as en or zh.

    Text without words, such as digits, is ``zxx``. Short texts are often mistaken.

    Raises:
        ResourceError: If the package is not installed.
    """
    require_identifier()
    package: Any = importlib.import_module(PACKAGE)
    return f"{PACKAGE} {version(PACKAGE)}", lambda text: str(package.classify(text[:_LOOKED_AT_CHARS])[0])
