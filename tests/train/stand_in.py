"""The text of the executable that ``warm_python`` makes; it runs without the packages, and starts in milliseconds.

It stands for a fork that is made for it: hands on the signals that it gets, takes the fork along when it is killed, and
ends as the fork ends. What needs no torch runs in the ordinary interpreter.
"""

import ctypes
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

_MODULES = ("kexue_train", "flows", "torch.distributed.run", "prefect.engine")
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def needs_torch(words: Sequence[str]) -> bool:
    """Whether ``python *words`` would import torch; not so for most processes of Ray and Prefect."""
    match words:
        case ["-m", module, *_]:
            return module.startswith(_MODULES)
        case ["-c", code, *_]:
            return "torch.distributed.run" in code
        case [script, *_] if not script.startswith("-"):
            return "site-packages" not in script or script.endswith("default_worker.py")
    return False


def ends_with_parent(words: Sequence[str]) -> bool:
    """Whether the process would ask the kernel to end it when its parent dies; its fork has another parent."""
    return "--supervised" in words or any("end_with_parent()" in word for word in words)


def stand_for_fork(words: Sequence[str], own: Path) -> NoReturn:
    """Have the fork made, and be it for whoever started this process."""
    request = {
        "command": words,
        "environment": dict(os.environ),
        "folder": str(Path.cwd()),
        "new session": True,
        "executable": sys.executable if "prefect.engine" in words else str(own),  # what a flow starts is its own
        "largest file": resource.getrlimit(resource.RLIMIT_FSIZE)[0],
        "host": f"/proc/{os.getpid()}/ns/uts",
    }
    if ends_with_parent(words):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    text = json.dumps(request).encode()
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until there is a process to hand them to
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(own.with_name("forker")))
    socket.send_fds(connection, [len(text).to_bytes(4, "big")], [0, 1, 2])
    connection.sendall(text)
    process = int.from_bytes(connection.recv(4), "big")
    for number in _SIGNALS:
        signal.signal(number, lambda number, _: os.kill(process, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    code = int(connection.recv(64) or 1)
    if code >= 0:
        os._exit(code)
    if code != -signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
    os._exit(1)


if __name__ == "__main__":
    command = [word for number, word in enumerate(sys.argv[1:]) if number or word != "-u"]
    this = Path(__file__).absolute()
    if needs_torch(command):
        stand_for_fork(command, this)
    os.execv(sys.executable, [str(this), *sys.argv[1:]])  # it takes itself for this one, and so starts others by it
