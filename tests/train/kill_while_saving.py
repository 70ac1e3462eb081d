"""The worker, but killed with SIGKILL while it saves: ``python kill_while_saving.py MOMENT --config ... --out ...``.

MOMENT names what the second checkpoint is killed before: a function of ``format.py``, or ``admit``; ``half`` stands for
the middle of writing the optimizer's file.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from kexue_train.train import worker
from kexue_train.train.checkpoint import CheckpointFolder
from kexue_train.train.checkpoint import format as module


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _on_second_call(owner: Any, name: str, *, half: bool) -> None:
    function, calls = getattr(owner, name), []

    def die_the_second_time(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == 2:
            if half:
                function(*args, **kwargs)
                path = Path(args[1])
                os.truncate(path, path.stat().st_size // 2)
            _kill()
        return function(*args, **kwargs)

    setattr(owner, name, die_the_second_time)


if __name__ == "__main__":
    moment = sys.argv[1]
    owner = CheckpointFolder if moment == "admit" else module
    _on_second_call(owner, "save_file" if moment == "half" else moment, half=moment == "half")
    sys.exit(worker.main(sys.argv[2:]))
