"""A port for a server that is told its port before it starts."""

from __future__ import annotations

import random
import socket

_PORTS = range(20_000, 32_000)
"""Below those that the kernel gives to outgoing connections, which would take a port before its server is up."""


def free_port() -> int:
    """Return a port of this machine that nobody uses now, and that nobody else is likely to choose soon."""
    choose = random.SystemRandom().choice  # not the same one in tests that run at the same time
    while True:
        port = choose(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
