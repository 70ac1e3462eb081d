"""Workers that start at once: forks of one process that has already imported torch and the trainer.

A worker takes seconds to import them, and the tests start dozens of workers. A fork is a process like any other, with
its own number, environment, output, signals and exit code. The tests of the pipeline, of torchrun, Ray and Slurm start
workers from nothing.

    python warm_worker.py DESCRIPTOR    the process that forks; asked through the socket with this number
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
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
    ) -> None:
        self.returncode: int | None = None
        self._said: str | None = None
        with tempfile.TemporaryFile() as output:  # a pipe that nobody reads yet would hold the process up
            self._output = os.dup(output.fileno())
        self._status, status = os.pipe()
        request = {
            "command": [str(word) for word in command],
            "environment": dict(os.environ if environment is None else environment),
            "folder": str(folder or Path.cwd()),
            "new session": new_session,
        }
        try:
            self.pid = _ask(request, self._output, status)
        finally:
            os.close(status)

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
def _forker() -> socket.socket:
    """Return the socket to the process that forks, which ends when this one closes it."""
    ours, theirs = socket.socketpair()
    # Arrow's other allocator has a thread of its own, and a process that forks should have one thread.
    environment = os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system"}
    command = [sys.executable, __file__, str(theirs.fileno())]
    process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _ask(request: Mapping[str, object], output: int, status: int) -> int:
    """Have a process made that writes to ``output``, and its exit code written to ``status``; return its number."""
    connection, text = _forker(), json.dumps(request).encode()
    socket.send_fds(connection, [len(text).to_bytes(4)], [output, status])
    connection.sendall(text)
    answer = connection.recv(4)
    assert answer, "the process that forks workers has ended"
    return int.from_bytes(answer)


def _serve(connection: socket.socket) -> None:
    """Fork a process for each request, and report how each ended."""
    import kexue_train.train.worker  # noqa: F401  # what all this is for

    statuses: dict[int, int] = {}
    wakened, waking = os.pipe()
    os.set_blocking(waking, False)
    signal.set_wakeup_fd(waking)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever runs the tests; they close the socket
    while True:
        ready, _, _ = select.select([connection, wakened], [], [])
        if wakened in ready:
            os.read(wakened, 1 << 12)
            _report_ended(statuses)
        if connection in ready:
            head, descriptors, _, _ = socket.recv_fds(connection, 4, 2)
            if not head:
                return
            request = json.loads(_receive(connection, int.from_bytes(head)))
            output, status = descriptors
            process = os.fork()
            if process == 0:
                for descriptor in (connection.fileno(), wakened, waking, status, *statuses.values()):
                    os.close(descriptor)
                _become(request, output)
            os.close(output)
            statuses[process] = status
            connection.sendall(process.to_bytes(4))


def _receive(connection: socket.socket, size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        part = connection.recv(size - len(parts))
        if not part:
            sys.exit("the other end of the socket has gone")
        parts += part
    return parts


def _report_ended(statuses: dict[int, int]) -> None:
    for process in list(statuses):
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            descriptor = statuses.pop(process)
            with contextlib.suppress(BrokenPipeError):  # the test did not wait for it
                os.write(descriptor, str(os.waitstatus_to_exitcode(status)).encode())
            os.close(descriptor)


def _become(request: Mapping[str, object], output: int) -> NoReturn:
    """Be the process that was asked for, to its end."""
    code = 1
    try:
        if request["new session"]:
            os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        code = _run(request["command"])
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _run(command: list[str]) -> int:
    """Do what ``python *command`` does, and return the exit code."""
    warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)  # runpy's, since it is imported
    try:
        if command[0] == "-m":
            sys.argv = command[1:]
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = command
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
    _serve(socket.socket(fileno=int(sys.argv[1])))
