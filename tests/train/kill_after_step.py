"""The worker, but killed with SIGKILL after a step: ``python kill_after_step.py STEP --config ... --out ...``.

The checkpoints of the steps before are on disk by then; ``kill_while_saving.py`` kills in the middle of one.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from kexue_train.train import loop, worker

if __name__ == "__main__":
    last, one_step = int(sys.argv[1]), loop.run_step

    def one_step_then_die(training: loop.Training, *more: Any) -> int:
        step = one_step(training, *more)
        if step == last:
            if training.outputs:
                training.outputs.checkpoints.finish()
            os.kill(os.getpid(), signal.SIGKILL)
        return step

    loop.run_step = one_step_then_die
    sys.exit(worker.main(sys.argv[2:]))
