"""The Prefect server that flows run on: the one that Prefect's settings name, else an embedded one."""

from __future__ import annotations

import os
import ssl
from http import HTTPStatus
from pathlib import Path

import httpx
from prefect.client.orchestration import get_client
from prefect.context import refresh_global_settings_context
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, get_current_settings, temporary_settings

from flows.embedded_server import start_embedded_server
from kexue_train.foundation.errors import ResourceError

_SECONDS_TO_ANSWER = 6.0
_ADDRESS = (
    "check that it runs ('prefect server start'), that PREFECT_API_URL is its address with /api at the end, and that "
    "no firewall blocks it"
)
_ADMISSION = (
    "give what it asks for: PREFECT_API_AUTH_STRING (USER:PASSWORD of a server of your own), PREFECT_API_KEY (Prefect "
    "Cloud) or PREFECT_CLIENT_CUSTOM_HEADERS (a proxy before it)"
)
_CERTIFICATE = "give the file of the certificate authority that signed its certificate as PREFECT_API_SSL_CERT_FILE"


def prepare_embedded_server() -> None:
    """Complete Prefect's settings for an embedded server, unless they name a server. What the user has set stays."""
    settings = get_current_settings()
    if settings.api.url:
        return
    # The profiles stay those of the user, though the server's state lies here.
    os.environ.setdefault("PREFECT_PROFILES_PATH", str(settings.profiles_path))
    os.environ.setdefault("PREFECT_HOME", str(Path.cwd() / ".prefect"))
    os.environ.setdefault("PREFECT_SERVER_UI_ENABLED", "false")
    # The stage list shows what happens; Prefect would print a traceback for every mistake in a configuration.
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    # A first start creates a new database, which can take more than the default 20 s on a small machine.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
    if not settings.server.ephemeral.model_fields_set:  # a profile without an address need not mention it
        os.environ["PREFECT_SERVER_EPHEMERAL_ENABLED"] = "true"
    refresh_global_settings_context()


def require_server() -> None:
    """Raise at once where Prefect would retry for minutes; start the embedded server if no other is named.

    Prefect's client asks, so all its settings count.

    Raises:
        ResourceError: If nothing answers at the address, if the answer is a refusal or not that of a Prefect server, or
            if there is no address and the settings forbid an embedded server.
    """
    address = get_current_settings().api.url
    if not address:
        return _require_embedded_server()
    try:
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client({"timeout": _SECONDS_TO_ANSWER}, sync_client=True) as client,
        ):
            client.read_work_pools(limit=1)  # unlike its health, this is told only to those whom the server lets in
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        what, remedy = _explain(error)
        raise ResourceError(
            f"the Prefect server at {address} does not answer ({what}); {remedy}. 'prefect config view' "
            "tells what is set where; without PREFECT_API_URL a flow runs on an embedded server"
        ) from None


def _require_embedded_server() -> None:
    if not get_current_settings().server.ephemeral.enabled:
        raise ResourceError(
            "no Prefect server is named (PREFECT_API_URL) and an embedded one is forbidden "
            "(PREFECT_SERVER_EPHEMERAL_ENABLED=false); set the former or remove the latter, in the environment or the "
            "profile ('prefect config view' tells what is set where)"
        )
    start_embedded_server()


def _explain(error: Exception) -> tuple[str, str]:
    """Return what went wrong, without addresses and credentials, and what to do about it."""
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        remedy = _ADMISSION if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN) else _ADDRESS
        return f"HTTP {status} {error.response.reason_phrase}".rstrip(), remedy
    if isinstance(error, httpx.HTTPError | httpx.InvalidURL):
        return str(error) or type(error).__name__, _CERTIFICATE if _is_about_tls(error) else _ADDRESS
    if isinstance(error, OSError):  # before anything is sent, Prefect's client loads the certificate authority
        return f"the file PREFECT_API_SSL_CERT_FILE: {error}", _CERTIFICATE
    return "the answer is not one of Prefect's API", _ADDRESS


def _is_about_tls(error: BaseException | None) -> bool:
    return error is not None and (isinstance(error, ssl.SSLError) or _is_about_tls(error.__context__))
