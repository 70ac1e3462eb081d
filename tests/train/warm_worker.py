"""Workers that start at once: forks of one process that has already imported torch and the trainer.

A worker takes seconds to import them, and the tests start dozens of workers. A fork is a process like any other, with
its own number, environment, output, signals and exit code. ``WarmProcess`` is one that a test starts itself;
``warm_python`` is an interpreter for programs that start workers. Whole runs from nothing are in the tests of the
pipeline and of the flow.

    python warm_worker.py SOCKET    the process that forks; asked through connections to this socket, one per process
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import json
import os
import resource
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn


class WarmProcess:
    """A process that runs ``python *command``; the part of ``subprocess.Popen`` that tests use."""

    def __init__(
        self,
        command: Sequence[object],
        environment: Mapping[str, str] | None = None,
        *,
        folder: Path | None = None,
        new_session: bool = False,
        python: str = sys.executable,
    ) -> None:
        """Start it; ``python`` is the interpreter that it starts others with."""
        self.returncode: int | None = None
        self._said: str | None = None
        with tempfile.TemporaryFile() as output:  # a pipe that nobody reads yet would hold the process up
            self._output = os.dup(output.fileno())
        request = {
            "command": [str(word) for word in command],
            "environment": dict(os.environ if environment is None else environment),
            "folder": str(folder or Path.cwd()),
            "new session": new_session,
            "executable": python,
        }
        self._status, self.pid = _ask(request, self._output)

    def poll(self) -> int | None:
        """Return the exit code, negative after a signal; None while the process runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            said = os.read(self._status, 64)
            os.close(self._status)
            assert said, "the process that forks workers has ended"
            self.returncode = int(said)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Wait for the end and return standard output and standard error in one."""
        self.wait(timeout)
        if self._said is None:
            self._said = os.pread(self._output, os.fstat(self._output).st_size, 0).decode(errors="replace")
            os.close(self._output)
        return self._said, None

    def send_signal(self, number: int) -> None:
        """Send the signal if the process still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


@functools.cache
def forker() -> Path:
    """Start the process that forks, and return its socket. The process ends with this one."""
    folder = Path(tempfile.mkdtemp(prefix="kexue-warm-"))  # pytest's folders have too long a path for a socket
    ready, told = os.pipe()
    # Arrow's other allocator has a thread of its own, and a process that forks should have one thread.
    environment = os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system"}
    command = [sys.executable, __file__, str(folder / "socket"), str(told)]
    process = subprocess.Popen(command, env=environment, pass_fds=[told], stdin=subprocess.PIPE)
    os.close(told)

    def end() -> None:
        assert process.stdin
        process.stdin.close()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    os.read(ready, 1)
    os.close(ready)
    return folder / "socket"


def _ask(request: Mapping[str, object], output: int) -> tuple[int, int]:
    """Have a process made that writes to ``output``; return where its exit code will be read, and its number."""
    text = json.dumps(request).encode()
    with Path(os.devnull).open() as nothing, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(forker()))
        socket.send_fds(connection, [len(text).to_bytes(4)], [nothing.fileno(), output, output])
        connection.sendall(text)
        answer = connection.recv(4)
        assert answer, "the process that forks workers has ended"
        return connection.detach(), int.from_bytes(answer)


def _serve(path: str, told: int) -> None:
    """Fork a process for each connection, and report how it ended; a connection that is closed ends its process."""
    import torch.utils.tensorboard  # noqa: F401  # it and the rest are what all this is for

    import kexue_train.cli.app
    import kexue_train.pipeline.stages
    import kexue_train.train.worker  # noqa: F401

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    os.close(told)
    running: dict[int, socket.socket] = {}
    wakened, waking = os.pipe()
    os.set_blocking(waking, False)
    signal.set_wakeup_fd(waking)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever runs the tests; they close the standard input
    while True:
        ready, _, _ = select.select([sys.stdin, listener, wakened, *running.values()], [], [])
        if sys.stdin in ready:
            for process in running:
                os.kill(process, signal.SIGKILL)
            return
        if wakened in ready:
            os.read(wakened, 1 << 12)
            _report_ended(running)
        for process, connection in list(running.items()):
            if connection in ready:
                os.kill(process, signal.SIGKILL)  # not yet waited for, so the number is still its own
                running.pop(process).close()
        if listener in ready:
            connection, _ = listener.accept()
            request, descriptors = _receive(connection)
            process = os.fork()
            if process == 0:
                for descriptor in (wakened, waking):
                    os.close(descriptor)
                for other in (listener, connection, *running.values()):
                    other.close()
                _become(request, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            running[process] = connection
            with contextlib.suppress(BrokenPipeError):
                connection.sendall(process.to_bytes(4))


def _receive(connection: socket.socket) -> tuple[dict, list[int]]:
    head, descriptors, _, _ = socket.recv_fds(connection, 4, 3)
    size, parts = int.from_bytes(head), b""
    while len(parts) < size:
        parts += connection.recv(size - len(parts))
    return json.loads(parts), descriptors


def _report_ended(running: dict[int, socket.socket]) -> None:
    while True:
        try:
            process, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not process:
            return
        if connection := running.pop(process, None):
            with contextlib.suppress(BrokenPipeError):  # the test did not wait for it
                connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
            connection.close()


def _become(request: dict, descriptors: Sequence[int]) -> NoReturn:
    """Be the process that was asked for, to its end."""
    code = 1
    try:
        if request["new session"]:
            os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for place, descriptor in enumerate(descriptors):
            os.dup2(descriptor, place)
            os.close(descriptor)
        sys.stdout.reconfigure(line_buffering=True)
        atexit._clear()  # what the imports have registered is for the process that imported
        _surround(request)
        code = _run(request["command"])
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _surround(request: dict) -> None:
    """Take over the environment, the folder and what else a process has from the one that starts it."""
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    now = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    sys.path[:] = [request["folder"], *now, *(path for path in sys.path[1:] if path not in before)]
    sys.executable = request["executable"]
    if size := request.get("largest file"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    if (host := request.get("host")) and not Path(host).samefile("/proc/self/ns/uts"):
        ctypes.CDLL(None).setns(os.open(host, os.O_RDONLY), 0)


def _run(command: list[str]) -> int:
    """Do what ``python *command`` does, and return the exit code."""
    warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)  # runpy's, since it is imported
    try:
        if command[0] == "-m":
            sys.argv = command[1:]
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        elif command[0] == "-c":
            sys.argv = ["-c", *command[2:]]
            sys.modules["__main__"] = types.ModuleType("__main__")
            exec(command[1], vars(sys.modules["__main__"]))  # noqa: S102  # as the interpreter does
        else:
            sys.argv = command
            sys.path[0] = str(Path(command[0]).absolute().parent)
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    except BaseException:  # noqa: BLE001  # as the interpreter does
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
