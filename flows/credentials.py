"""Keeps credentials out of the parameters of a flow run, which the server records and shows to whoever reaches it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from kexue_train.foundation.credentials import redact, redact_values
from kexue_train.foundation.errors import ConfigError

_given: ContextVar[Mapping[str, str]] = ContextVar("given", default=MappingProxyType({}))


@contextmanager
def masked_parameters(options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Give the parameters to call a flow with; inside it ``as_given`` returns the texts as they were."""
    texts = [text for value in options.values() if isinstance(value, list) for text in value]
    token = _given.set({redact(text): text for text in texts})
    try:
        yield {name: redact_values(value) if isinstance(value, list) else value for name, value in options.items()}
    finally:
        _given.reset(token)


def as_given(texts: Sequence[str] | None) -> list[str]:
    """Return texts that a flow has as a parameter, with the credentials that the command line had.

    Raises:
        ConfigError: If they came with credentials to the flow, so that the server has recorded them.
    """
    for text in texts or ():
        if (shown := redact(text)) != text:
            raise ConfigError(
                f"{shown}: this parameter of the flow run has credentials, and the Prefect server shows them to "
                "whoever reaches it; renew them, and write the address into the configuration file, or into a list of "
                "inputs (@FILE), on the machine where the flow runs"
            )
    return [_given.get().get(text, text) for text in texts or ()]
