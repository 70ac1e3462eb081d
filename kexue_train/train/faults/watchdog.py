"""Ends a worker that hangs, after telling where each of its threads stands and which rank the others wait for.

A rank that stops in the middle of a step holds up all others in a collective, silently and for ever. The launcher
cannot know; the worker can: it notes every finished micro-step, and a thread looks at that note.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self, TextIO

import torch

from kexue_train.foundation.artifacts import write_if_possible
from kexue_train.train.faults.flight_recorder import write_collectives

logger = logging.getLogger(__name__)

HUNG = 4
"""Exit code of a worker that its watchdog ended."""
FIRST_STEP = 3
"""The first micro-step may take so many times longer: compilers and allocators warm up in it."""
_LOOKS = 8
_SECONDS_FOR_OTHERS = 10.0
# Here a rank waits for the others, or for its device, which waits for theirs; in none of these files for itself.
_WAITING = (f"torch{os.sep}distributed{os.sep}", f"torch{os.sep}cuda{os.sep}", f"faults{os.sep}step_report.py")


@dataclass(frozen=True)
class Position:
    """Where a rank stands."""

    rank: int
    host: str
    micro_step: int
    """The last one that it has finished."""
    waits_in: str | None
    """The collective or the device that it waits for; None if it does something of its own."""
    at: str
    """Function, file and line."""


class Watchdog:
    """Watches the thread that enters it.

    Args:
        folder: Where the stacks are written to: ``rank-N.stacks.txt``.
        rank: This rank.
        world_size: Number of ranks.
        timeout: Seconds without a finished micro-step after which this process ends with exit code ``HUNG``.
        unfinished_work: Returns the name of the device if it has not finished what it was given. Who hangs with an
            idle device is the one that the others wait for; with a busy one it hangs in any line that reads a result.
        end: Ends the process; never returns.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        world_size: int,
        timeout: float,
        unfinished_work: Callable[[], str | None] = lambda: None,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._folder, self._rank, self._world_size = folder, rank, world_size
        self._timeout, self._unfinished_work, self._end = timeout, unfinished_work, end
        self._micro_step = 0
        self._beats = self._seen = 0
        self._silent = 0.0
        self._closed = threading.Event()
        self._stacks: TextIO | None = None

    def beat(self, micro_step: int) -> None:
        """A micro-step is finished, or another piece of work as long, such as a batch of a validation after it."""
        self._micro_step = micro_step
        self._beats += 1

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file("json").unlink(missing_ok=True)
        self._stacks = self._open_stacks()
        self._watched = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="kexue-watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        assert self._stacks is not None
        with contextlib.suppress(OSError):  # nothing may be left of the folder
            self._stacks.close()
            if not self._file("txt").stat().st_size:
                self._file("txt").unlink()

    def _open_stacks(self) -> TextIO:
        try:
            return self._file("txt").open("a", encoding="utf-8")  # those of the start before stay
        except OSError as error:
            logger.warning("%s: cannot be written (%s); stacks go to standard error", self._file("txt"), error)
            return open(os.dup(2), "a", encoding="utf-8")  # noqa: PTH123  # closed with the watchdog

    def _watch(self) -> None:
        assert self._stacks is not None
        interval = self._timeout / _LOOKS
        looked = time.monotonic()
        while not self._closed.wait(interval):
            # This thread does not run while a library keeps the interpreter to itself; faulthandler's own one does.
            faulthandler.dump_traceback_later(2 * self._limit(), exit=True, file=self._stacks)
            now = time.monotonic()
            if self._beats != self._seen:
                self._seen, self._silent = self._beats, 0.0
            else:
                # A process that was stopped for a while (a closed laptop, kill -STOP) has not hung.
                self._silent += min(now - looked, 2 * interval)
            looked = now
            if self._silent >= self._limit():
                with contextlib.suppress(OSError):  # a full disk must not keep a process that hangs
                    self._report()
                self._end(HUNG)
                return

    def _limit(self) -> float:
        return self._timeout * (1 if self._beats else FIRST_STEP)

    def _report(self) -> None:
        assert self._stacks is not None
        faulthandler.dump_traceback(file=self._stacks, all_threads=True)
        waits_in, at = _where(sys._current_frames().get(self._watched))
        mine = Position(self._rank, socket.gethostname(), self._micro_step, waits_in or self._unfinished_work(), at)
        write_if_possible(self._file("json"), json.dumps(asdict(mine)))
        write_collectives(self._folder, self._rank)
        message = (
            f"rank {self._rank} has finished no micro-step for {self._silent:.0f} s (train.faults.hang_timeout); "
            f"{diagnose(self._positions(), self._world_size)}. The stacks of all threads are in {self._file('txt')}"
        )
        logger.error("%s", message)
        for stream in (self._stacks, sys.stderr):
            with contextlib.suppress(OSError):
                stream.write(f"\n{message}\n")
                stream.flush()

    def _positions(self) -> list[Position]:
        """Those of all ranks that have written theirs, after a time in which all that are alive will have."""
        deadline = time.monotonic() + _SECONDS_FOR_OTHERS
        while True:
            found = []
            for rank in range(self._world_size):
                with contextlib.suppress(OSError, ValueError, TypeError):
                    found.append(Position(**json.loads(self._file("json", rank).read_text(encoding="utf-8"))))
            if len(found) == self._world_size or time.monotonic() > deadline:
                return found
            time.sleep(0.1)

    def _file(self, kind: str, rank: int | None = None) -> Path:
        name = {"txt": "stacks.txt", "json": "position.json"}[kind]
        return self._folder / f"rank-{self._rank if rank is None else rank}.{name}"


def unfinished_work(device: torch.device) -> str | None:
    """Return the name of ``device`` if it still works on what this process gave it; None for a CPU."""
    if device.type != "cuda":
        return None
    try:
        return None if torch.cuda.default_stream(device).query() else str(device)
    except RuntimeError:  # it is broken, and says so to whoever waits for it
        return None


def diagnose(positions: Sequence[Position], world_size: int) -> str:
    """Which ranks the others wait for, in words."""
    told = {position.rank for position in positions}
    if silent := [rank for rank in range(world_size) if rank not in told]:
        return f"{_ranks(silent)} of {world_size} did not even tell where: dead, stopped or out of reach"
    last = min(position.micro_step for position in positions)
    behind = [position for position in positions if position.micro_step == last]
    busy = [position for position in behind if position.waits_in is None]
    if not busy:
        where = ", ".join(sorted({str(position.waits_in) for position in positions}))
        return f"all ranks wait for each other after micro-step {last} (in {where}): the network, or a backend, hangs"
    places = "; ".join(f"rank {position.rank} on {position.host} is in {position.at}" for position in busy[:4])
    return f"behind: {_ranks([position.rank for position in busy])}, after micro-step {last}: {places}"


def _ranks(numbers: Sequence[int]) -> str:
    return f"rank{'s' if numbers[1:] else ''} {', '.join(map(str, numbers))}"


def _where(frame: FrameType | None) -> tuple[str | None, str]:
    """(collective in which the thread waits, innermost place)."""
    if frame is None:
        return None, "no thread"
    at = f"{frame.f_code.co_name} ({frame.f_code.co_filename}:{frame.f_lineno})"
    outwards = [inner for inner, _ in traceback.walk_stack(frame)]
    waits = [inner.f_code.co_name for inner in outwards if any(part in inner.f_code.co_filename for part in _WAITING)]
    return (waits[-1] if waits else None), at
