"""The last collectives of each rank, which PyTorch notes as they run, written down when a rank hangs."""

from __future__ import annotations

import json
import os
from pathlib import Path

from torch._C import _distributed_c10d

from kexue_train.foundation.artifacts import write_if_possible

_ENTRIES = "2000"
"""A few steps of the largest model, in some megabytes of memory."""


def record_collectives() -> None:
    """Switch the recorder on; call it before joining a group. A PyTorch older than 2.9 does not know the name."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", _ENTRIES)


def write_collectives(folder: Path, rank: int) -> None:
    """Write ``rank-N.collectives.json``: the last collectives, their sizes, and whether they started and ended."""
    dump = getattr(_distributed_c10d, "_dump_nccl_trace_json", None)  # with NCCL
    dump = dump or getattr(_distributed_c10d, "_dump_fr_trace_json", None)
    if dump is None:
        return
    try:
        text = dump(True, False).decode("utf-8", "replace")
    except RuntimeError as error:  # nothing may keep a process that hangs
        text = json.dumps({"error": str(error)})
    write_if_possible(folder / f"rank-{rank}.collectives.json", text)
