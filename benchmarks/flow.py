"""What a flow adds to ``kexue pipeline``: ``python -m benchmarks.flow [--rounds N] [--database URL]``.

A run of seconds, as a command and as a flow, on each kind of server in turn: the embedded one, one of its own on
SQLite, and one on the PostgreSQL database at URL (``postgresql+asyncpg://USER@HOST:PORT/NAME``); both ask for a
password. With ``--restart`` the server is stopped as soon as the training has begun, and started again at once.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_AUTH = "benchmark:secret"
_CONFIG = """
name: seconds
corpus: {inputs: [documents.jsonl]}
shuffle: {shards: 2, memory: 256MB}
tokenizer: {vocab_size: 96}
samples: {seq_len: 32, heldout_fraction: 0.05, nsp: false}
model:
  {num_hidden_layers: 1, hidden_size: 32, num_attention_heads: 2, intermediate_size: 64, max_position_embeddings: 32}
optimizer: {schedule: {2: 1.0}}
train:
  {steps: 12, global_batch_size: 4, micro_batch_size: 4, device: cpu, compute: {engine: torch},
  workers: {launcher: local, threads_per_worker: 1}, checkpoints: {every: 1000000}}
evaluate: {masked_sentences: ["One [MASK]."]}
execution: {tasks: local, num_workers: 1}
"""
_WORDS = ["river", "stone", "light", "under", "winter", "garden", "seven", "paper", "open", "letter", "old", "sea"]


@dataclass
class Server:
    """A Prefect server on a free port, with a database of its own."""

    folder: Path
    database: str
    process: subprocess.Popen[bytes] | None = None
    port: int = field(default=0)

    @property
    def client(self) -> dict[str, str]:
        """Variables with which a flow reaches it."""
        return {"PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api", "PREFECT_API_AUTH_STRING": _AUTH}

    def start(self) -> None:
        """Start it and wait until it answers."""
        if not self.port:
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.port = free.getsockname()[1]
        own = {
            "PREFECT_HOME": str(self.folder),
            "PREFECT_SERVER_API_AUTH_STRING": _AUTH,
            "PREFECT_SERVER_UI_ENABLED": "false",
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": self.database,
        }
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "prefect", "server", "start", "--port", str(self.port), "--analytics-off"],
                env=_environment(own), stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        while True:
            try:
                self.ask("health", None)
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)

    def stop(self) -> None:
        """End it with all that it started."""
        if self.process:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait()

    def ask(self, path: str, data: dict[str, Any] | None) -> Any:
        """Return the answer to a request."""
        token = base64.b64encode(_AUTH.encode()).decode()
        headers = {"content-type": "application/json", "authorization": f"Basic {token}"}
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(f"{self.client['PREFECT_API_URL']}/{path}", body, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def states(self) -> str:
        """Return the states of the last flow run and of its tasks."""
        run = self.ask("flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})[0]
        tasks = self.ask("task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
        names = sorted({task["state_name"] for task in tasks})
        return f"{run['state_name']}, {len(tasks)} tasks {'/'.join(names)}"


def main() -> None:
    """Print one line per run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--database")
    parser.add_argument("--restart", action="store_true")
    arguments = parser.parse_args()
    databases = {"SQLite": None} | ({"PostgreSQL": arguments.database} if arguments.database else {})
    print("| run | seconds | processor seconds | requests | 503 | waited, s | states |\n|---|---|---|---|---|---|---|")
    with _workplace() as folder:
        servers = {name: _server(folder, name, url) for name, url in databases.items()}
        try:
            for server in servers.values():
                server.start()
            for _ in range(arguments.rounds):
                _measure(folder, "`kexue pipeline`", None)
                if not arguments.restart:
                    _measure(folder, "flow, embedded server", {})
                for name, server in servers.items():
                    _measure(folder, f"flow, server on {name}", server.client, server, restart=arguments.restart)
        finally:
            for server in servers.values():
                server.stop()


def _server(folder: Path, name: str, url: str | None) -> Server:
    home = folder / name
    home.mkdir()
    return Server(home, url or f"sqlite+aiosqlite:///{home}/prefect.db")


def _measure(
    folder: Path, title: str, client: dict[str, str] | None, server: Server | None = None, *, restart: bool = False
) -> None:
    run, counts = folder / "run", folder / "requests.json"
    shutil.rmtree(run, ignore_errors=True)
    counts.unlink(missing_ok=True)
    command = ["kexue_train", "pipeline", "--config"] if client is None else ["benchmarks.flow_requests", str(counts)]
    arguments = [str(folder / "seconds.yaml"), "--run-dir", str(run), *(["train.steps=4000"] if restart else [])]
    environment = _environment({"PREFECT_HOME": str(folder / "embedded"), **(client or {})})
    began, used = time.monotonic(), _processor_seconds()
    process = subprocess.Popen(
        [sys.executable, "-m", *command, *arguments], cwd=_REPOSITORY, env=environment,
        stdout=subprocess.DEVNULL, stderr=(folder / "stderr").open("wb"),
    )  # fmt: skip
    if restart and server:
        _restart(server, run, process)
    if process.wait():
        sys.exit((folder / "stderr").read_text(errors="replace"))
    seconds, processor = time.monotonic() - began, _processor_seconds() - used
    cells = [title, f"{seconds:.1f}", f"{processor:.1f}"]
    if client is not None:
        found = json.loads(counts.read_text())
        refused = found["requests"].get("503", 0)
        cells += [str(sum(found["requests"].values())), str(refused), f"{sum(found['waits']):.1f}"]
    print(f"| {' | '.join([*cells, server.states() if server else ''])} |", flush=True)


def _restart(server: Server, run: Path, process: subprocess.Popen[bytes]) -> None:
    metrics = run / "pretrain" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.1)
    server.stop()
    server.start()


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


_REPOSITORY = Path(__file__).resolve().parents[1]


def _environment(more: dict[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return inherited | {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"} | more


@contextmanager
def _workplace() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kexue-flow-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        sentences = (" ".join(_WORDS[(row * row + word) % 12] for word in range(30)) + "." for row in range(300))
        rows = [json.dumps({"text": f"{number} {text}"}) for number, text in enumerate(sentences)]
        (folder / "documents.jsonl").write_text("\n".join(rows) + "\n")
        (folder / "seconds.yaml").write_text(_CONFIG)
        yield folder


if __name__ == "__main__":
    main()
