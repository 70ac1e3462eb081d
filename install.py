"""Install packages of this project into an environment and show how far it is: ``python install.py .venv all,dev``.

``make`` runs it with the interpreter that the environment is to have. It needs only the standard library. Versions are
those of constraints.txt.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import time
import venv
from collections import deque
from pathlib import Path

_ROOT = Path(__file__).resolve().parent
_FETCHED = re.compile(r"(?:Downloading|Using cached|Processing) (?:\S*/)?([\w.]+)-\S+\.whl(?: (\([\d.]+ \w+\))| .*|)$")
_SECONDS_BETWEEN = {True: 0.5, False: 20.0}
"""How often the state is shown: in a terminal, where it replaces itself, and elsewhere."""


class Installation:
    """What is known of an installation by the lines that pip has printed."""

    def __init__(self, packages: Path) -> None:
        """Begin.

        Args:
            packages: The folder that packages are installed in; it need not exist.
        """
        self._packages = packages
        self._before = self._installed()
        self._looked_up = self._total = 0
        self._fetched = ""

    def read(self, line: str) -> None:
        """Learn from one line of pip."""
        if line.startswith("Collecting "):
            self._looked_up += 1
        elif found := _FETCHED.match(line):
            self._fetched = " ".join(filter(None, found.groups()))
        elif line.startswith("Installing collected packages: "):
            self._total = line.count(",") + 1

    def describe(self) -> str:
        """Return such as ``installed 40 of 181 packages``."""
        if self._total:
            return f"installed {min(self._total, self._installed() - self._before)} of {self._total} packages"
        if self._fetched:
            return f"fetching {self._fetched}"
        return f"looking up packages: {self._looked_up}"

    def _installed(self) -> int:
        return sum(1 for _ in self._packages.glob("*.dist-info"))


def _make_environment(folder: Path) -> Path:
    """Return the interpreter of the environment in ``folder``, which is made if it has none."""
    python = folder / "bin" / "python"
    if not python.exists():
        try:
            venv.EnvBuilder(clear=True, symlinks=True, with_pip=True).create(folder)
        except (subprocess.CalledProcessError, ImportError):
            shutil.rmtree(folder, ignore_errors=True)
            sys.exit(
                f"{sys.executable} cannot make virtual environments; install its venv module (Debian, Ubuntu: apt "
                "install python3-venv)"
            )
    return python


def _show(installation: Installation, ended: threading.Event) -> None:
    started, in_terminal = time.monotonic(), sys.stdout.isatty()
    while not ended.wait(_SECONDS_BETWEEN[in_terminal]):
        text = f"  {time.monotonic() - started:3.0f} s  {installation.describe()}"
        print(f"\r{text:<78.78}" if in_terminal else text, end="" if in_terminal else "\n", flush=True)
    if in_terminal:
        print(f"\r{'':78}\r", end="", flush=True)


def install(folder: Path, extras: str) -> int:
    """Install this project with ``extras`` (such as ``all,dev``), editable; return pip's exit code."""
    python = _make_environment(folder)
    packages = next((folder / "lib").glob("python3*/site-packages"))
    installation, last, ended = Installation(packages), deque[str](maxlen=25), threading.Event()
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    what = ["-c", _ROOT / "constraints.txt", "-e", f"{_ROOT}[{extras}]"]
    shower = threading.Thread(target=_show, args=(installation, ended), daemon=True)
    with subprocess.Popen([*pip, *what], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        shower.start()
        for line in process.stdout or ():
            installation.read(line.strip())
            last.append(line)
    ended.set()
    shower.join()
    if process.returncode:
        print("".join(last), end="", file=sys.stderr)
        print("The installation stopped (see above); the same command starts it again.", file=sys.stderr)
    return process.returncode


if __name__ == "__main__":
    try:
        sys.exit(install(Path(sys.argv[1]), sys.argv[2]))
    except KeyboardInterrupt:
        sys.exit(130)
