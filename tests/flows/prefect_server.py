"""A Prefect server of a test's own, on a free port, with a worker; asked through its REST interface."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tests.free_port import free_port
from tests.train.warm_python import warm_python

REPOSITORY = Path(__file__).resolve().parents[2]
_AUTH = "kexue:secret"
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}

_T = TypeVar("_T")


def wait_for(found: Callable[[], _T | None], seconds: float, what: str) -> _T:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (value := found()) is not None:
            return value
        time.sleep(0.3)
    raise AssertionError(f"no {what} within {seconds} s")


def _answer(request: urllib.request.Request) -> list[Any] | None:
    """What the server answers; None while it is busy with its database, or for a minute: it may be asked again."""
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
    except TimeoutError:
        if request.get_method() != "GET":  # what was asked for may happen yet
            raise
        return None
    except urllib.error.HTTPError as error:
        if error.code != 503:
            raise
        error.close()
        return None
    return [json.loads(text) if text else None]


class PrefectServer:
    """Server, which asks for a password, and worker; both in sessions of their own, their output in files."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.home, self.port = home, free_port()
        self.api = f"http://127.0.0.1:{self.port}/api"
        own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        self.environment = own | environment | {
            "PREFECT_HOME": str(home / "prefect"),
            "PREFECT_API_URL": self.api,
            "PREFECT_API_AUTH_STRING": _AUTH,
            "PREFECT_SERVER_API_AUTH_STRING": _AUTH,
            "PREFECT_CLI_PROMPT": "false",
            "PREFECT_SERVER_UI_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
            "PREFECT_SERVER_SERVICES_REPOSSESSOR_LOOP_SECONDS": "2",
            "PREFECT_SERVER_TASKS_TAG_CONCURRENCY_SLOT_WAIT_SECONDS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "PATH": os.pathsep.join([*map(os.path.dirname, (warm_python(), sys.executable)), os.environ["PATH"]]),
        }  # fmt: skip
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start_server(self) -> None:
        self._start("server", "server", "start", "--host", "127.0.0.1", "--port", str(self.port), "--analytics-off")
        wait_for(self._is_healthy, 600, "Prefect server")

    def start_worker(self) -> None:
        self._start("worker", "worker", "start", "--pool", "process", "--type", "process", "--install-policy", "never")

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        process = self._processes.pop(name)
        process.send_signal(number)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def stop_all(self) -> None:
        for name in [name for name in ("worker", "server") if name in self._processes]:
            self.stop(name, signal.SIGKILL if name == "server" else signal.SIGTERM)

    def log(self, name: str) -> str:
        return (self.home / f"{name}.log").read_text(errors="replace")

    def run(self, *command: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
        """A command of the environment, to its end."""
        return subprocess.run(
            command, cwd=cwd, env=self.environment, capture_output=True, text=True, timeout=900, check=False
        )

    def ask(self, path: str, data: Any = None, method: str | None = None) -> Any:
        body = None if data is None else json.dumps(data).encode()
        token = base64.b64encode(_AUTH.encode()).decode()
        headers = {"content-type": "application/json", "authorization": f"Basic {token}"}
        request = urllib.request.Request(f"{self.api}/{path}", body, headers, method=method)
        return wait_for(lambda: _answer(request), 300, f"answer to {path}")[0]

    def start_run(self, deployment: str, **parameters: Any) -> str:
        found = self.ask(f"deployments/name/{deployment}")["id"]
        made = self.ask(
            f"deployments/{found}/create_flow_run", {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        )
        return str(made["id"])

    def state(self, flow_run: str) -> dict[str, Any]:
        state: dict[str, Any] = self.ask(f"flow_runs/{flow_run}")["state"]
        return state

    def end_of(self, flow_run: str, seconds: float = 600) -> dict[str, Any]:
        """The state the run ends with."""

        def ended() -> dict[str, Any] | None:
            state = self.state(flow_run)
            return state if state["type"] in ENDED else None

        return wait_for(ended, seconds, f"end of the flow run; the worker said:\n{self.log('worker')[-3000:]}")

    def artifacts(self, flow_run: str) -> dict[str, Any]:
        """Key -> data."""
        found = self.ask("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [flow_run]}}, "limit": 200})
        return {artifact["key"]: artifact["data"] for artifact in found}

    def _start(self, name: str, *arguments: str) -> None:
        with (self.home / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [warm_python(), "-m", "prefect", *arguments],
                cwd=REPOSITORY,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _is_healthy(self) -> bool | None:
        process = self._processes["server"]
        assert process.poll() is None, self.log("server")
        try:
            self.ask("health")
        except (urllib.error.URLError, OSError):
            return None
        return True
