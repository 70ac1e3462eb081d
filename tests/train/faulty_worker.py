"""The worker with a fault: ``FAULT="kill 1 5 /tmp/done" python faulty_worker.py --config ... --out ...``.

After step 5 rank 1 does what is said, once: the file marks that it has. ``kill``: SIGKILL; ``hang``: sleeps for ever;
``slow``: from then on, every step takes two seconds.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from kexue_train.train import loop, worker

if __name__ == "__main__":
    kind, rank, after, marker = os.environ["FAULT"].split()
    one_step = loop.run_step

    def one_step_with_fault(training: loop.Training, *more: object) -> object:
        result = one_step(training, *more)
        step = training.state.step
        if os.environ.get("RANK", "0") != rank or step < int(after):
            return result
        if kind == "slow":
            time.sleep(2)
        elif step == int(after) and not Path(marker).exists():
            Path(marker).touch()
            if kind == "kill":
                time.sleep(2)  # the last checkpoint is on the disk by then
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(10**6)
        return result

    loop.run_step = one_step_with_fault
    sys.exit(worker.main(sys.argv[1:]))
