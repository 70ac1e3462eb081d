"""The scripts for this machine, with stand-ins for the servers: loopback only, started once, stopped by process id."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "cluster" / "local"
# A server that answers every request, where it is told --host and --port; another program that just lives.
PROGRAM = """
import os, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
words = sys.argv[1:]
with open(os.environ["FAKE_LOG"], "a") as log: log.write(" ".join([Path(sys.argv[0]).name, *words]) + "\\n")
if words[:2] != ["server", "start"]:
    if Path(sys.argv[0]).name == "ray": sys.exit()
    time.sleep(600)
class Answer(BaseHTTPRequestHandler):
    def do_GET(self): self.send_response(200); self.end_headers(); self.wfile.write(b"true")
    def log_message(self, *_): pass
HTTPServer((words[words.index("--host") + 1], int(words[words.index("--port") + 1])), Answer).serve_forever()
"""


class Machine:
    """A folder with stand-ins for prefect, tensorboard and ray on the PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (folder / "bin").mkdir()
        for name in ("prefect", "tensorboard", "ray"):
            path = folder / "bin" / name
            path.write_text(f"#!{sys.executable}\n{PROGRAM}")
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        (folder / "bin" / "python").symlink_to(sys.executable)

    def run(self, script: str) -> str:
        environment = os.environ | {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "FAKE_LOG": str(self.log),
            "PREFECT_PORT": str(self.port),
        }  # fmt: skip
        with (self.folder / "output").open("w+") as output:  # a pipe would stay open as long as the servers live
            subprocess.run(
                [str(FOLDER / script)], cwd=self.folder, env=environment, check=True, timeout=600, stdout=output
            )
            output.seek(0)
            return output.read()

    def pids(self) -> dict[str, int]:
        return {path.stem: int(path.read_text()) for path in (self.folder / ".services").glob("*.pid")}

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    if (tmp_path / ".services").exists():
        made.run("stop_services.sh")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.sh")), ids=lambda path: path.name)
def test_bash_can_read_the_script(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert path.stat().st_mode & stat.S_IXUSR
    assert "\nset -euo pipefail\n" in path.read_text()


def test_services_start_once_on_loopback_and_stop(machine: Machine) -> None:
    output = machine.run("start_services.sh")
    first = machine.pids()
    assert set(first) == {"server", "worker", "tensorboard"}
    assert f"export PREFECT_API_URL=http://127.0.0.1:{machine.port}/api" in output
    auth = machine.folder / ".services" / "auth"
    assert stat.S_IMODE(auth.stat().st_mode) == 0o600
    assert auth.read_text().strip() not in output
    told = subprocess.run(["bash", "-c", output.splitlines()[0] + "; env"], capture_output=True, text=True, check=True)
    assert f"PREFECT_API_AUTH_STRING={auth.read_text()}" in told.stdout
    machine.run("start_services.sh")
    assert machine.pids() == first
    while len(calls := machine.calls()) < 3:  # the last one needs a moment to say that it was called
        time.sleep(0.05)
    assert [call for call in calls if "--host" in call and "--host 127.0.0.1" not in call] == []
    assert any("worker start --pool process --type process" in call for call in calls)
    machine.run("stop_services.sh")
    assert machine.pids() == {}
    assert [name for name, pid in first.items() if alive(pid)] == []


def test_stopping_what_does_not_run_is_fine(machine: Machine) -> None:
    machine.run("stop_services.sh")


def test_ray_starts_on_loopback_with_a_token(machine: Machine) -> None:
    output = machine.run("start_ray.sh")
    (call,) = machine.calls()
    assert "--node-ip-address=127.0.0.2" in call
    assert "--dashboard-host=127.0.0.1" in call
    assert "execution.ray_address=127.0.0.2:6379" in output
    assert "RAY_AUTH_MODE=token" in (FOLDER / "start_ray.sh").read_text()
