"""Which steps have which rows and batches: the phases of a training, as 128 tokens before 512.

Steps count through all phases, and so do schedules and metrics. Each length has samples of its own, one endless stream
of rows (``batches/order.py``). A phase continues in the stream of its length where the phase before it with the same
length stopped, whatever their batch sizes: no row comes twice before all have come once. Everything here is a function
of the configuration, so it holds after a resume, and on any number of workers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from kexue_train.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Consecutive steps with one length of rows and one batch size; ``step`` is a number of steps done."""

    number: int
    """From 1."""
    first_step: int
    """Steps before it."""
    steps: int
    seq_len: int
    global_batch_size: int
    micro_batch_size: int
    accumulation_steps: int
    """Micro-batches per step and worker."""
    rows_before: int
    """Rows that earlier phases read of the same samples."""
    all_rows_before: int
    """Rows that earlier phases read."""
    micro_steps_before: int
    """Micro-steps of each worker in earlier phases."""

    @property
    def end(self) -> int:
        """Steps done when it ends."""
        return self.first_step + self.steps

    def rows(self, step: int) -> int:
        """Rows read of its samples."""
        return self.rows_before + (step - self.first_step) * self.global_batch_size

    def all_rows(self, step: int) -> int:
        """Rows read of all samples."""
        return self.all_rows_before + (step - self.first_step) * self.global_batch_size

    def micro_steps(self, step: int) -> int:
        """Micro-steps of each worker."""
        return self.micro_steps_before + (step - self.first_step) * self.accumulation_steps


def plan_phases(train: TrainConfig, seq_lens: Sequence[int], micro_batch_sizes: Sequence[int]) -> tuple[Phase, ...]:
    """The phases of ``train``, given the length of the rows and the micro-batch size of each."""
    phases: list[Phase] = []
    step = all_rows = micro_steps = 0
    rows: defaultdict[int, int] = defaultdict(int)
    for settings, seq_len, micro_batch_size in zip(train.phase_settings, seq_lens, micro_batch_sizes, strict=True):
        phase = Phase(
            number=len(phases) + 1,
            first_step=step,
            steps=settings.steps,
            seq_len=seq_len,
            global_batch_size=settings.global_batch_size,
            micro_batch_size=micro_batch_size,
            accumulation_steps=settings.global_batch_size // (micro_batch_size * train.num_workers),
            rows_before=rows[seq_len],
            all_rows_before=all_rows,
            micro_steps_before=micro_steps,
        )
        step, rows[seq_len] = phase.end, phase.rows(phase.end)
        all_rows, micro_steps = phase.all_rows(step), phase.micro_steps(step)
        phases.append(phase)
    return tuple(phases)


def phase_after(phases: Sequence[Phase], step: int) -> Phase:
    """The phase of the step that comes after ``step`` steps; the last one when all are done."""
    return next((phase for phase in phases if step < phase.end), phases[-1])


def phase_of(phases: Sequence[Phase], step: int) -> Phase:
    """The phase of step number ``step``, from 1."""
    return next(phase for phase in phases if step <= phase.end)
