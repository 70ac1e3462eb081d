"""What stands at the address of a server: a stand-in that answers, perhaps behind TLS or for a header; and settings."""

from __future__ import annotations

import http.server
import os
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

Headers = dict[str, str]


class Door:
    """What answers like a Prefect server of no pools; whoever does not send the ``wanted`` headers is refused."""

    def __init__(self) -> None:
        self.seen: list[Headers] = []
        self.wanted: Headers = {}
        self.refusal = 403
        door = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # http.server's name
                self._answer(404, b"{}")  # a server without CSRF protection

            def do_POST(self) -> None:  # http.server's name
                self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                door.seen.append(headers)
                let_in = door.wanted.items() <= headers.items()
                status = 404 if self.path != "/api/work_pools/filter" else 200 if let_in else door.refusal
                self._answer(status, b"[]")

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}/api"


@contextmanager
def open_door(context: ssl.SSLContext | None = None) -> Iterator[Door]:
    door = Door()
    if context:
        door.server.socket = context.wrap_socket(door.server.socket, server_side=True)
    threading.Thread(target=door.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield door
    door.server.shutdown()
    door.server.server_close()


@contextmanager
def own_settings(folder: Path) -> Iterator[pytest.MonkeyPatch]:
    """Prefect's settings as of a user who has none, in a folder without any; what is yielded may change them."""
    from flows import server  # completes the environment at its first import

    with pytest.MonkeyPatch.context() as clean:
        for name in [name for name in os.environ if name.startswith("PREFECT_")]:
            clean.delenv(name)
        clean.setenv("PREFECT_HOME", str(folder / "home"))
        clean.chdir(folder)
        yield clean
    server.refresh_global_settings_context()


def reach(environment: pytest.MonkeyPatch, **settings: str) -> None:
    """What a flow does first, with these variables of the environment."""
    from flows import server

    for name, value in settings.items():
        environment.setenv(f"PREFECT_{name}", value)
    server.refresh_global_settings_context()
    server.prepare_embedded_server()
    server.require_server()


def write_certificate(path: Path) -> Path:
    """Write a certificate for localhost that is its own authority, with its key; return the path."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path
