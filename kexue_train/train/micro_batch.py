"""``micro_batch_size: auto``: the most rows of one backward that fit the device and still make it faster.

A size is tried by running it: forward and backward, more than once, so that the gradients that the first pass leaves
behind take the place of Tiger's momentum. What is found is kept in the training's folder, since a resume with other
micro-batches would draw other dropout and add in another order.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from kexue_train.batches.mixed import TrainingData
from kexue_train.foundation.artifacts import write_if_possible
from kexue_train.foundation.errors import ResourceError
from kexue_train.foundation.operating_system import forget_peak_memory, peak_memory_bytes
from kexue_train.foundation.runtime import available_memory_bytes, format_size, give_back_freed_memory
from kexue_train.train.config import TrainConfig
from kexue_train.train.data import Tensors, first_batch, to_device
from kexue_train.train.device_errors import OUT_OF_MEMORY, find_fault
from kexue_train.train.distributed import local_world_size, same_on_all_ranks
from kexue_train.train.job import JobConfig
from kexue_train.train.objective import PretrainingObjective
from kexue_train.train.phases import Phase

logger = logging.getLogger(__name__)

_GAIN = 0.97  # a size must take less than this share of the time per row that half of it takes
_RUNS = 3  # in the first, kernels are chosen and gradients made; of the others the faster is the less disturbed
_SHARE_OF_CUDA, _SHARE_OF_MEMORY = 0.9, 0.8  # the rest is for communication; batches, checkpoints and other processes


class Cost(NamedTuple):
    """What one micro-batch takes: forward and backward."""

    peak_bytes: int
    """All that this process holds at its worst moment."""
    seconds: float


def micro_batch_sizes(
    config: JobConfig, objective: PretrainingObjective, datasets: Sequence[TrainingData], kept: Path
) -> list[int]:
    """The micro-batch size of each phase, the same on every rank; those that are "auto" are found, or read in ``kept``.

    Call it before an optimizer exists: gradients come and go.

    Raises:
        ResourceError: If not even one row fits.
    """
    given = [settings.micro_batch_size for settings in config.train.phase_settings]
    if "auto" not in given:
        return [size for size in given if size != "auto"]
    known: dict[str, int] = same_on_all_ranks(_read_kept(kept) if dist.get_rank() == 0 else {})
    sizes = []
    for settings, dataset in zip(config.train.phase_settings, datasets, strict=True):
        size = settings.micro_batch_size
        if size == "auto":
            rows = settings.global_batch_size // config.train.num_workers
            key = _describe(config, dataset.seq_len, rows, objective)
            size = known.get(key) or _find(config, objective, dataset, rows)
            known[key] = size
        sizes.append(size)
    if dist.get_rank() == 0:
        write_if_possible(kept, json.dumps(known, indent=2) + "\n")
    return sizes


def _read_kept(file: Path) -> dict[str, int]:
    """Return the sizes that were found before; none if the file is missing or damaged: they are then found again."""
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        logger.warning("%s: is damaged (%s), so micro-batches are tried again", file, error)
        return {}
    pairs = found.items() if isinstance(found, dict) else ()
    return {key: size for key, size in pairs if type(size) is int and size > 0}


def choose_size(sizes: Sequence[int], run: Callable[[int], Cost | None], budget_bytes: int) -> int:
    """The largest of ``sizes`` that fits and is worth it; 0 if none fits.

    Sizes are tried as they rise, until one does not fit, or by a line through the peaks so far will not, or takes no
    less time per row than one of half its rows.

    Args:
        sizes: Rising.
        run: The cost of a size; None if memory ran out.
        budget_bytes: The highest peak allowed.
    """
    costs: dict[int, Cost] = {}
    for size in sizes:
        if _foreseen_bytes(costs, size) > budget_bytes:
            break
        cost = run(size)
        if cost is None or cost.peak_bytes > budget_bytes:
            break
        half = max((tried for tried in costs if 2 * tried <= size), default=None)
        if half and cost.seconds / size > _GAIN * costs[half].seconds / half:
            break
        costs[size] = cost
    return max(costs, default=0)


def _foreseen_bytes(costs: Mapping[int, Cost], size: int) -> float:
    if len(costs) < 2:
        return 0
    low, high = min(costs), max(costs)
    slope = (costs[high].peak_bytes - costs[low].peak_bytes) / (high - low)
    return costs[high].peak_bytes + slope * (size - high)


def divisors(number: int) -> list[int]:
    """All of them, rising."""
    return [size for size in range(1, number + 1) if number % size == 0]


def _find(config: JobConfig, objective: PretrainingObjective, dataset: TrainingData, rows: int) -> int:
    """The smallest answer of all ranks."""
    device = next(objective.parameters()).device
    budget = _budget_bytes(device)
    dist.barrier()  # before any rank takes memory that another one counts as free

    def run(size: int) -> Cost | None:
        cost = _measure(objective, first_batch(config, dataset, size), device)
        logger.info("micro_batch_size=%d, seq_len=%d: %s", size, dataset.seq_len, cost or "does not fit")
        return cost

    objective.train()
    answer = torch.tensor(choose_size(divisors(rows), run, budget), device=device)
    objective.zero_grad(set_to_none=True)
    dist.all_reduce(answer, op=dist.ReduceOp.MIN)
    if not (size := int(answer)):
        raise ResourceError(
            f"train.micro_batch_size=auto: not even one row of {dataset.seq_len} tokens fits {device} with "
            f"{format_size(budget)} for this worker; set train.compute.recompute=full, or take shorter rows, a "
            "smaller model, or fewer workers on this machine"
        )
    return size


def _measure(objective: PretrainingObjective, batch: Tensors, device: torch.device) -> Cost | None:
    try:
        seconds = []
        for _ in range(_RUNS):
            _forget_peak(device)
            started = time.perf_counter()
            loss, _ = objective(to_device(batch, device))
            loss.backward()
            peak = _peak_bytes(device)  # waits for the device
            seconds.append(time.perf_counter() - started)
        return Cost(peak, min(seconds))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    objective.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def _budget_bytes(device: torch.device) -> int:
    """How much this process may hold at its worst moment."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(_SHARE_OF_CUDA * (free + torch.cuda.memory_reserved(device)))
    _forget_peak(device)
    return _peak_bytes(device) + int(_SHARE_OF_MEMORY * available_memory_bytes() / local_world_size())


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    give_back_freed_memory()
    try:
        forget_peak_memory()
    except OSError as error:
        raise ResourceError(
            f"train.micro_batch_size=auto: this system does not let a process measure its memory ({error}); give a "
            "number of rows"
        ) from None


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    return peak_memory_bytes()


def _describe(config: JobConfig, seq_len: int, rows: int, objective: PretrainingObjective) -> str:
    """What the answer depends on, of that which may change before a resume."""
    train, device = config.train, next(objective.parameters()).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    recompute = train.compute.model_dump(mode="json")["recompute"]
    return f"{rows} of {seq_len} tokens on each of {train.num_workers} x {name}, recompute {recompute}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch (of any device), a library below it or Python says that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or find_fault(str(error)) is OUT_OF_MEMORY


@contextmanager
def out_of_memory_explained(
    train: TrainConfig, device: torch.device, at: Callable[[], tuple[Phase, int]]
) -> Iterator[None]:
    """Turn an out-of-memory error inside into one that says what to lower.

    Args:
        train: The section of the configuration.
        device: The device of this rank.
        at: Returns the phase and the steps done.

    Raises:
        ResourceError: In its place.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(_explain(train, device, *at(), str(error).partition("\n")[0])) from error


def _explain(train: TrainConfig, device: torch.device, phase: Phase, step: int, error: str) -> str:
    where = f" in phase {phase.number}" if len(train.phase_settings) > 1 else ""
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
        f"out of memory on {device} after step {step}: a micro-batch of "
        f"{phase.micro_batch_size} rows of {phase.seq_len} tokens with recompute={train.compute.recompute} does not "
        f"fit ({error}). Set {'; or '.join(remedies)}; then run the same command again: it resumes from the last "
        "checkpoint"
    )
