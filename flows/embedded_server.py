"""Prefect's embedded server, in a process that ends with the flow.

Prefect's client would start the same server by itself, but for that it imports the server's code into the process of
the flow too, which takes 3 s of processor time.
"""

from __future__ import annotations

import atexit
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading

from prefect.client.orchestration import get_client
from prefect.context import refresh_global_settings_context
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, get_current_settings, temporary_settings

from kexue_train.foundation.errors import ResourceError

_SECONDS_TO_END = 5.0


def start_embedded_server() -> None:
    """Start the server, make it the one that Prefect's settings name, and end it with this process.

    It listens on a free port of the loopback interface and asks for a password, which only this process has.

    Raises:
        ResourceError: If it ends before it answers, or takes longer than Prefect's settings allow.
    """
    seconds, password = get_current_settings().server.ephemeral.startup_timeout_seconds, secrets.token_hex(16)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve({listening.fileno()})"],
            stdin=subprocess.PIPE,  # closed when this process ends, however it ends
            env=os.environ | {"PREFECT_SERVER_API_AUTH_STRING": password},
            pass_fds=[listening.fileno()],
            start_new_session=True,  # Ctrl-C is for the flow, which tells the server
        )
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
    atexit.register(_end, process)  # after Prefect's threads have sent what they still have
    os.environ |= {"PREFECT_API_URL": address, "PREFECT_API_AUTH_STRING": password}
    refresh_global_settings_context()
    no_retries = temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0})
    with no_retries, get_client({"timeout": seconds}, sync_client=True) as client:
        error = client.api_healthcheck()
    if error:
        raise ResourceError(
            f"Prefect's embedded server did not start within {seconds} s ({str(error) or type(error).__name__}); see "
            "above what it said, allow more with PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, or start one with "
            "'prefect server start' and set PREFECT_API_URL"
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin
    process.stdin.close()
    try:
        process.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def serve(listening: int) -> None:
    """Serve connections of a listening socket, given by its file descriptor, until the standard input ends."""
    import uvicorn
    from prefect.server.api.server import create_app

    threading.Thread(target=_end_with_parent, daemon=True).start()
    app = create_app(ephemeral=True, final=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on")).run([socket.socket(fileno=listening)])


def _end_with_parent() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)
