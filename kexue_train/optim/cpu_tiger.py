"""Tiger's rule on a CPU in one pass over memory for each half, by functions in C that each process compiles once.

Plain torch operations need two to four passes, and on bf16 states ten more for the random bits. The functions give the
same bits: that is tried when they are compiled, and where it does not hold, or there is no C compiler, plain operations
stay. Nothing is kept on disk, so no library of another machine or version is ever loaded.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kexue_train.optim.random_bits import (
    MULTIPLIER_0,
    MULTIPLIER_1,
    PAGE_BITS,
    Rounding,
    round_stochastically,
    stream_key,
)

logger = logging.getLogger(__name__)

LEAST_ELEMENTS = 1 << 16
"""Smaller tensors are in the caches anyway, and a model that has no larger ones is trained without a compiler."""
_COMPILE_SECONDS = 60
_SOURCE = Path(__file__).with_suffix(".c")
_FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_POINTER, _SIZE, _FLOAT, _KEY = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_float, ctypes.c_uint32
_RANDOM = (ctypes.c_uint64, _KEY, _KEY)
_FOLD, _MOVE = (_POINTER, _POINTER, _SIZE, _FLOAT, _FLOAT), (_POINTER, _POINTER, _SIZE, _SIZE, _POINTER, _POINTER)


class Kernels:
    """The compiled functions; see ``cpu_tiger.c``.

    Args:
        library: What was compiled.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._fold, self._move = {}, {}
        for dtype, name in _TYPES.items():
            random = _RANDOM if dtype is torch.bfloat16 else ()
            self._fold[dtype] = _typed(library[f"fold_{name}"], _FOLD + random)
            self._move[dtype] = _typed(library[f"move_rows_{name}"], _MOVE + random)

    def fold_(
        self, moment: Tensor, grad: Tensor, *, decay: float, weight: float, rounding: Rounding, number: int
    ) -> None:
        """Fold: m ← decay · m + weight · g, in place.

        Args:
            moment: See ``kernels_for``; its first element is the first one of the part.
            grad: As many elements of the same type.
            decay: A number.
            weight: A number.
            rounding: For bf16.
            number: Number of the part, whose random bits bf16 is rounded with.
        """
        fold, size, random = self._fold[moment.dtype], moment.element_size(), _keys(moment, rounding, number)
        here, there = moment.data_ptr(), grad.data_ptr()

        def run(start: int, end: int) -> None:
            places = (start, *random) if random else ()
            fold(here + start * size, there + start * size, end - start, decay, weight, *places)

        _in_threads(run, moment.numel(), 1)

    def move_(
        self, param: Tensor, momentum: Tensor, steps: Tensor, decays: Tensor, *, rounding: Rounding, number: int
    ) -> None:
        """Move: θ ← θ - (step · sign(m) + decay · θ), in place, with a step and a decay for each row.

        Args:
            param: See ``kernels_for``; n elements.
            momentum: As many elements of the same type.
            steps: fp32 [rows], where ``rows`` divides n.
            decays: fp32 [rows].
            rounding: For bf16.
            number: See ``fold_``.
        """
        move, size, random = self._move[param.dtype], param.element_size(), _keys(param, rounding, number)
        here, there, by_step, by_decay = (tensor.data_ptr() for tensor in (param, momentum, steps, decays))
        rows, width = steps.numel(), param.numel() // steps.numel()

        def run(start: int, end: int) -> None:
            row, places = start // width if rows > 1 else 0, (start, *random) if random else ()
            lines = ((end - start) // width, width) if rows > 1 else (1, end - start)
            move(
                here + start * size, there + start * size, *lines, by_step + 4 * row, by_decay + 4 * row, *places
            )  # fmt: skip

        _in_threads(run, param.numel(), width if rows > 1 else 1)


def kernels_for(*tensors: Tensor) -> Kernels | None:
    """Return the functions if they are good for these: contiguous on a CPU, large, all fp32 or all bf16; else None."""
    first = tensors[0]
    fits = (
        first.dtype in _TYPES
        and LEAST_ELEMENTS <= first.numel() < 1 << PAGE_BITS
        and all(t.dtype is first.dtype and t.device.type == "cpu" and t.is_contiguous() for t in tensors)
    )
    return compiled() if fits else None


@lru_cache
def compiled() -> Kernels | None:
    """Compile, once a process; None where that cannot be done or the bits differ, which is logged."""
    try:
        kernels = Kernels(_compile())
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None) or str(error)
        logger.info("Tiger takes plain torch operations, which give the same numbers and take longer: %s", output)
        return None
    if not all(_gives_same_bits(kernels, dtype, rows) for dtype in _TYPES for rows in (1, 3)):
        logger.info("Tiger takes plain torch operations: compiled code rounds in another way on this machine")
        return None
    return kernels


def _compile() -> ctypes.CDLL:
    compiler = shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise FileNotFoundError("there is no C compiler (cc, gcc or clang)")
    names = [f"-DMULTIPLIER_0={MULTIPLIER_0}u", f"-DMULTIPLIER_1={MULTIPLIER_1}u"]
    with tempfile.TemporaryDirectory(prefix="kexue-tiger-") as folder:
        target = Path(folder) / "cpu_tiger.so"
        command = [compiler, *_FLAGS, *names, str(_SOURCE), "-o", str(target), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_COMPILE_SECONDS)
        return ctypes.CDLL(str(target))


def _gives_same_bits(kernels: Kernels, dtype: torch.dtype, rows: int) -> bool:
    """Try one fold and one move of 3 x 1,001 elements beside plain operations."""
    generator = torch.Generator().manual_seed(0)
    param, moment, grad = (torch.randn(3003, generator=generator).mul_(0.01).to(dtype) for _ in range(3))
    moment[:100], grad[50:150] = 0.0, 0.0
    steps = torch.rand(rows, generator=generator)
    decays, rounding = steps * 0.01, Rounding(1, 2)
    folded, moved = (tensor.to(torch.float32, copy=True) for tensor in (moment, param))
    direction, moved = folded.sign().view(rows, -1), moved.view(rows, -1)
    folded.mul_(0.965).add_(grad.float(), alpha=0.035)
    if rows == 1:
        moved.sub_(direction.mul_(steps.item()).add_(moved, alpha=decays.item()))
    else:
        moved.sub_(direction.mul_(steps[:, None]).addcmul_(moved, decays[:, None]))
    wanted = [folded, moved.flatten()]
    if dtype is torch.bfloat16:
        wanted = [round_stochastically(v, seed=1, stream=rounding.stream(n)) for n, v in enumerate(wanted)]
    kernels.move_(param, moment, steps, decays, rounding=rounding, number=1)
    kernels.fold_(moment, grad, decay=0.965, weight=0.035, rounding=rounding, number=0)
    return torch.equal(moment, wanted[0]) and torch.equal(param, wanted[1])


def _keys(tensor: Tensor, rounding: Rounding, number: int) -> tuple[int, int] | None:
    return stream_key(rounding.seed, rounding.stream(number)) if tensor.dtype is torch.bfloat16 else None


def _typed(function: Any, types: tuple[type, ...]) -> Any:
    function.argtypes, function.restype = types, None
    return function


def _in_threads(run: Callable[[int, int], None], numel: int, width: int) -> None:
    """Call ``run`` for ranges of whole rows of ``width`` elements, one a thread of torch; C holds no lock of Python."""
    rows = numel // width
    parts = min(torch.get_num_threads(), rows, max(numel // LEAST_ELEMENTS, 1))
    if parts == 1:
        run(0, numel)
        return
    ends = [rows * number // parts * width for number in range(parts + 1)]
    for future in [_threads(parts).submit(run, *pair) for pair in pairwise(ends)]:
        future.result()


@lru_cache
def _threads(number: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(number, thread_name_prefix="tiger")
