"""Out of memory while training: what to lower, and by how much."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kexue_train.foundation.errors import ResourceError
from kexue_train.train.loop import Training

# What has no class of its own: the allocator of the CPU, and libraries of CUDA that found no room for their work space.
_IN_WORDS = re.compile(
    r"can't allocate memory|not enough memory|cannot allocate memory|CUDA error: out of memory|STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch (of any device) or Python says that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(_IN_WORDS.search(str(error)))


@contextmanager
def out_of_memory_explained(training: Training) -> Iterator[None]:
    """Turn an out-of-memory error inside into one that says what to lower.

    Raises:
        ResourceError: In its place.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(_explain(training, str(error).partition("\n")[0])) from error


def _explain(training: Training, error: str) -> str:
    phase, train = training.phase, training.config.train
    where = f" in phase {phase.number}" if len(training.phases) > 1 else ""
    remedies = []
    half = phase.micro_batch_size // 2
    if half:
        rows = phase.micro_batch_size * phase.accumulation_steps
        smaller = max(size for size in range(1, half + 1) if rows % size == 0)
        remedies.append(f"micro_batch_size={smaller}{where} (the global batch stays as it is), or auto")
    if train.compute.recompute != "full":
        remedies.append("train.compute.recompute=full (a third more work)")
    if not remedies:
        remedies.append("shorter rows, a smaller model, or a device with more memory")
    return (
        f"out of memory on {training.device} after step {training.state.step}: a micro-batch of "
        f"{phase.micro_batch_size} rows of {phase.seq_len} tokens with recompute={train.compute.recompute} does not "
        f"fit ({error}). Set {'; or '.join(remedies)}; then run the same command again: it resumes from the last "
        "checkpoint"
    )
