"""How much memory a reader takes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

_PEAK = """
import sys
from kexue_train.cli.app import app
from kexue_train.cli.errors import run_command
code = run_command(app, sys.argv[1:], "kexue")
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
sys.exit(code)
"""


def _memory_is_counted_in_bytes(data: Path) -> None:
    subprocess.run([sys.executable, data / "big_batch.py", data, "100"], check=True)
    for name in ("books.parquet", "books.arrow"):  # 100 MB; they took 380 and 350 MB
        command = [
            "shuffle",
            name,
            "-o",
            name.replace(".", "-"),
            "--workers",
            "1",
            "--memory",
            "200MB",
            "--shards",
            "4",
        ]
        script = [sys.executable, "-c", _PEAK, *command]
        ended = subprocess.run(script, cwd=data, env=os.environ, check=True, capture_output=True, text=True)
        *_, peak = ended.stdout.split()
        assert int(peak) * 1024 < 230 * 10**6  # the limit and a margin; 190 on a quiet machine


CHECKS: dict[str, Callable[[Path], None]] = {"D02": _memory_is_counted_in_bytes}
