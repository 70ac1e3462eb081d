"""Prefect flows: the order of the stages, retries, artifacts. No arithmetic, no file formats.

A flow runs on the server that Prefect's settings name, wherever they stand: environment, profile, ``prefect.toml``. If
they name none, it runs on Prefect's embedded server, with its state in ``.prefect/`` here.
"""

import os

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

from flows.server import prepare_embedded_server

prepare_embedded_server()
