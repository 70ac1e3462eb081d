"""What must not be shown or kept: passwords, tokens and signatures in addresses, and secrets of the environment.

An address is opened as it was given. Wherever it is written down or shown, its credentials are masked (``redact``);
where it stands for the data behind it, they are left out (``without_credentials``), since a renewed signature is not
another input.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

MASK = "***"
_CHAIN = r"(?!::[a-z][a-z0-9+.-]*(?:::|://|\s|$))"  # of fsspec: zip://a.txt::s3://...
_ADDRESS = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://"
    # A password with a slash is no valid address; a port and a slash are.
    r"(?:(?P<user>[^\s/?#\"<>]*|[^\s/?#\"<>@:]*:(?!:|\d+[/?#])[^\s\"<>]*)@)?"
    rf"(?P<path>(?:{_CHAIN}[^\s?#\"'<>`|\\^])*)"
    rf"(?P<parameters>(?:{_CHAIN}(?:[^\s\"'<>`|\\^]|\\u0026))*(?<![,:.)\]]))",
    re.IGNORECASE,
)
_PARAMETER = re.compile(r"(?P<sign>\?|&amp;|\\u0026|[&;#])(?P<name>[^=&;#?\\]+)=(?P<value>[^&;#\\]*)", re.IGNORECASE)
_SECRET = re.compile(
    r"sig|hmac|jwt|x-(amz|goog|oss|obs|cos|ms|tos)-.*|q-(sign|ak|key|header|url)-?.*|"
    r"(.*-)?(signature|token|secret|password|passwd|pwd|credentials?|auth|authorization|api-?key|secret-?key)"
)
"""Names of parameters, in lower case and with ``-`` for ``_``."""
_OF_A_SIGNATURE = re.compile(
    r"s[a-z]|spr|sip|srt|sk[a-z]{1,4}|scid|saoid|suoid|expires?|expiry|policy|key-pair-id|(aws|oss|obs)?access-?key-?id|"
    r"google-?access-?id"
)
"""What belongs to a signature and changes with it: times, scopes and names of keys; elsewhere it may name data."""
_SIGNATURE = re.compile(r"sig|hmac|(.*-)?signature")
_WEB, _STORES = ("http", "https"), ("s3", "s3a", "s3n", "gs", "gcs", "oss", "cos")
_VARIABLE = re.compile(r"SECRET|PASSWORD|PASSWD|CREDENTIAL|(^|_)TOKEN$")
_PERHAPS_A_VARIABLE = re.compile(r"(^|_)(KEY|PASS|PAT|AUTH|AUTH_STRING|APIKEY)$")
_SHORTEST, _LONG = 8, 20
"""Characters of a value of the environment that is taken for a secret: fewer are words of the language too often."""


def redact(text: str) -> str:
    """Return ``text`` with ``***`` for the credentials in its addresses and for the secrets of the environment."""
    if "://" in text:
        text = _ADDRESS.sub(lambda found: _Address.of(found).masked(), text)
    for secret in _secrets_of(os.environ):
        text = text.replace(secret, MASK)
    return text


def redact_values(value: Any) -> Any:
    """Return texts, and mappings and lists of them, redacted; keys too."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redact_values(key): redact_values(entry) for key, entry in value.items()}
    return [redact_values(entry) for entry in value] if isinstance(value, list | tuple) else value


def without_credentials(address: str) -> str:
    """Return what ``address`` names, whoever asks for it; any other text as it is."""
    if "://" not in address:
        return address
    return _ADDRESS.sub(lambda found: _Address.of(found).stripped(), address)


def is_masked(address: str) -> bool:
    """Return whether credentials of ``address`` were masked, so that it cannot be opened."""
    return MASK in address and without_credentials(address) != address


class _Parameter(NamedTuple):
    sign: str
    name: str
    value: str
    is_secret: bool


class _Address(NamedTuple):
    scheme: str
    user: str
    """Empty if there is none."""
    path: str
    parameters: str

    @classmethod
    def of(cls, found: re.Match[str]) -> _Address:
        return cls(found["scheme"], found["user"] or "", found["path"], found["parameters"])

    def masked(self) -> str:
        user = f"{self._shown_user()}@" if self.user else ""
        return f"{self.scheme}://{user}{self.path}{self._edit(lambda entry: f'{entry.sign}{entry.name}={MASK}')}"

    def stripped(self) -> str:
        user = self._shown_user().replace(MASK, "").removesuffix(":")
        parameters = self._edit(lambda _: "")
        if parameters and self.parameters.startswith("?") and not parameters.startswith(("?", "#")):
            parameters = "?" + re.sub(r"^(&amp;|\\u0026|[&;])", "", parameters)
        return f"{self.scheme}://{f'{user}@' if user else ''}{self.path}{parameters}"

    def _shown_user(self) -> str:
        """Keep a name alone, such as that of Azure's container; in a web address it may be a token."""
        name, colon, _ = self.user.partition(":")
        if self.scheme.lower() in _WEB or (colon and self.scheme.lower() in _STORES):
            return MASK
        return f"{name}:{MASK}" if colon else self.user

    def _edit(self, edit: Any) -> str:
        secret = {entry[:3]: entry for entry in self._found() if entry.is_secret}
        return _PARAMETER.sub(
            lambda found: edit(secret[key]) if (key := found.group("sign", "name", "value")) in secret else found[0],
            self.parameters,
        )

    def _found(self) -> Iterator[_Parameter]:
        found = [match.group("sign", "name", "value") for match in _PARAMETER.finditer(self.parameters)]
        names = [unquote(name).lower().replace("_", "-") for _, name, _ in found]
        is_signed = any(_SIGNATURE.fullmatch(name) for name in names)
        for name, (sign, written, value) in zip(names, found, strict=True):
            is_secret = bool(_SECRET.fullmatch(name) or (is_signed and _OF_A_SIGNATURE.fullmatch(name)))
            yield _Parameter(
                sign, written, value, is_secret or (name == "key" and (value == MASK or _looks_random(value)))
            )


def _looks_random(value: str) -> bool:
    return len(value) >= _LONG or (len(value) >= _SHORTEST and any(sign.isdigit() for sign in value))


def _secrets_of(environment: Mapping[str, str]) -> list[str]:
    """Return the values of variables that are named as secrets, and passwords in addresses, the longest first."""
    found = set()
    for name, value in environment.items():
        is_path = value.startswith(("/", "~", "./"))
        if "://" in value:
            users = (_Address.of(match).user for match in _ADDRESS.finditer(value))
            found |= {user.partition(":")[2] for user in users if ":" in user}
        elif not is_path and (_VARIABLE.search(name) or (_PERHAPS_A_VARIABLE.search(name) and _looks_random(value))):
            found.add(value)
    return sorted((secret for secret in found if len(secret) >= _SHORTEST), key=len, reverse=True)
