"""The Prefect server: is it there, and what to do if not, said before anything starts."""

from __future__ import annotations

import httpx
from prefect.settings import PREFECT_API_KEY, PREFECT_API_URL

from kexue_train.foundation.errors import ResourceError

_SECONDS_TO_ANSWER = 6.0


def require_server() -> None:
    """Refuse at once where Prefect would try again for minutes; without an address the embedded server is used.

    Raises:
        ResourceError: If nothing answers at the address, or it is no Prefect server.
    """
    address = PREFECT_API_URL.value()
    if not address:
        return
    key = PREFECT_API_KEY.value()
    headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
    try:
        httpx.get(f"{address}/health", timeout=_SECONDS_TO_ANSWER, headers=headers).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ResourceError(
            f"the Prefect server at {address} does not answer ({error}); check that it runs ('prefect server start'), "
            "that PREFECT_API_URL (or the profile: 'prefect config view') is its address with /api at the end, and "
            "that no firewall is between; or unset PREFECT_API_URL to run on an embedded server"
        ) from None
