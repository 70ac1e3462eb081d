"""Runs the whole pipeline as a flow and counts its requests: ``python -m benchmarks.flow_requests OUT CONFIG ...``.

OUT is a JSON file: ``requests`` by HTTP status, and ``waits``, the seconds of each wait after a refusal or a lost
connection.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from flows.pretrain_pipeline import main


class _Requests(logging.Handler):
    """Reads the log lines of Prefect's client and of the HTTP client below it."""

    def __init__(self) -> None:
        super().__init__()
        self.statuses: Counter[int] = Counter()
        self.waits: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Count a request, or a wait before the next attempt."""
        arguments: Any = record.args
        if record.name == "httpx":
            _, _, _, status, _ = arguments
            self.statuses[status] += 1
        elif wait := re.search(r"attempt will be made in ([\d.]+)s", record.getMessage()):
            self.waits.append(float(wait[1]))


if __name__ == "__main__":
    requests = _Requests()
    for name in ("httpx", "prefect.client"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        logger.addHandler(requests)
    code = main(sys.argv[2:])
    Path(sys.argv[1]).write_text(json.dumps({"requests": requests.statuses, "waits": requests.waits}), encoding="utf-8")
    sys.exit(code)
