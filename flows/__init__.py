"""Prefect flows: the order of the stages, retries, artifacts. No arithmetic, no file formats.

Without a server (no PREFECT_API_URL) a flow runs on Prefect's embedded one, with its state in ``.prefect/`` here.
"""

import os
from pathlib import Path

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
if "PREFECT_API_URL" not in os.environ:
    os.environ.setdefault("PREFECT_HOME", str(Path.cwd() / ".prefect"))
    os.environ.setdefault("PREFECT_SERVER_UI_ENABLED", "false")
    # The stage list shows what happens; Prefect would print a traceback for every mistake in a configuration.
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    # A first start creates a new database, which can take more than the default 20 s on a small machine.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
