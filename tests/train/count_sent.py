"""What ranks send in a step, beside the plan: ``python -m tests.train.count_sent 8`` counts it with eight processes."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from kexue_train.train.communication import Collective, transfers_of_step
from tests.train.tiny_training import SECONDS
from tests.train.warm_worker import WarmProcess
from tests.train.zero_net import COUNTED, SMALLEST_TENSOR, make_objective

Bounds = dict[str, tuple[int, int]]


def start_ranks(ranks: int, folder: Path, *what: str) -> list[WarmProcess]:
    """Start ``zero_rank.py`` as often as there are ranks."""
    script, repository = Path(__file__).with_name("zero_rank.py"), Path(__file__).parents[2]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(repository)}
    return [WarmProcess([script, rank, ranks, folder, *what], environment) for rank in range(ranks)]


def wait_for(processes: list[WarmProcess]) -> None:
    """Wait until all have ended well; none is left behind."""
    try:
        for process in processes:
            output, _ = process.communicate(timeout=SECONDS)
            assert process.returncode == 0, output[-4000:]
    finally:
        for process in processes:
            process.kill()


def planned_bytes(name: str, ranks: int) -> Bounds:
    """Least and most bytes of a case that the plan allows, by kind of collective.

    Gathers and stage 3 pad each tensor to a multiple of the ranks.
    """
    case, params = COUNTED[name], list(make_objective().model.parameters())
    planned = transfers_of_step(
        parameters=sum(param.numel() for param in params if param.requires_grad),
        tensors=len(params),
        zero_stage=case.stage,
        hidden=case.optimizer["accumulate"] == "momentum",
        micro_steps=case.accumulation,
    )
    amounts = {kind: sum(t.times * t.tensor_bytes for t in planned if t.collective is kind) for kind in Collective}
    if case.stage == 3:  # the plan's model has no frozen tensors
        amounts[Collective.ALL_GATHER] = case.accumulation * sum(4 * param.numel() for param in params)
    padding = 0 if case.stage == 0 else case.accumulation * 4 * 2 * ranks * len(params)
    missing = 4 * 2 * SMALLEST_TENSOR if case.stage == 0 else 0
    return {kind.name.lower(): (max(amount - missing, 0), amount + padding) for kind, amount in amounts.items()}


def sent_bytes(folder: Path, rank: int, ranks: int) -> dict[str, dict[str, float]]:
    """What a rank has counted, by case and kind of collective."""
    return json.loads((folder / f"sent-{ranks}-{rank}.json").read_text())  # type: ignore[no-any-return]  # as written


def main(ranks: int) -> None:
    """Print a table; the exit code tells whether all of it is as planned."""
    started, wrong = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wait_for(start_ranks(ranks, folder, "counts"))
        for case in COUNTED:
            counts = [sent_bytes(folder, rank, ranks)[case] for rank in range(ranks)]
            for kind, (least, most) in planned_bytes(case, ranks).items():
                found = [count[kind] for count in counts]
                is_planned = least <= min(found) and max(found) <= most
                wrong += not is_planned
                sys.stdout.write(
                    f"{case:22} {kind:10} {min(found):8,.0f} to {max(found):8,.0f} bytes, "
                    f"planned {least:8,} to {most:8,}{'' if is_planned else '  WRONG'}\n"
                )
    sys.stdout.write(f"{ranks} processes, {time.monotonic() - started:.0f} s\n")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
