"""Whatever ``prefect work-pool ls`` reaches, the flows reach."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.flows.doors import open_door, own_settings, reach, write_certificate
from tests.flows.prefect_server import wait_for
from tests.free_port import free_port


def addresses(use: Path) -> None:
    """The ways of ``prefect_addresses.sh``, through the doors of ``relay.py``, to a server that only answers."""
    pytest.importorskip("prefect")
    certificate = write_certificate(use / "certificate.pem")
    tls, header = free_port(), free_port()
    with open_door() as door, _relay(use, door.server.server_port, tls, header, certificate):
        ways = {
            "profile": {"PROFILES_PATH": str(use / "profiles.toml")},
            "slash": {"API_URL": f"http://{door.address}/"},
            "insecure": {"API_URL": f"https://localhost:{tls}/api", "API_TLS_INSECURE_SKIP_VERIFY": "true"},
            "own_ca": {"API_URL": f"https://localhost:{tls}/api", "API_SSL_CERT_FILE": str(certificate)},
            "header": {
                "API_URL": f"http://127.0.0.1:{header}/api",
                "CLIENT_CUSTOM_HEADERS": '{"CF-Access-Client-Id": "secret"}',
            },
        }
        profile = f'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "http://{door.address}"\n'
        (use / "profiles.toml").write_text(profile)
        for number, settings in enumerate(ways.values(), 1):
            with own_settings(use) as environment:
                reach(environment, **settings)
            assert len(door.seen) == number, settings


@contextmanager
def _relay(use: Path, server: int, tls: int, header: int, certificate: Path) -> Iterator[None]:
    ports = [str(port) for port in (server, tls, header)]
    process = subprocess.Popen(
        [sys.executable, use / "relay.py", *ports, certificate, certificate], stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: (_answers(tls) and _answers(header)) or None, 60, "relay")
        yield
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


CHECKS = {"U07–U10": addresses}
