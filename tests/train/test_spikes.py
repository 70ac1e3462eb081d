"""Which rows go with a spike, and what is said of it."""

from __future__ import annotations

import json
import math

from kexue_train.train.faults.spikes import SkippedRows, Spike, count_skipped_rows, skipped_between
from kexue_train.train.phases import Phase


def _phase(number: int, first_step: int, steps: int, seq_len: int, global_batch_size: int) -> Phase:
    nothing = {"rows_before": 0, "all_rows_before": 0, "micro_steps_before": 0}
    return Phase(
        number=number, first_step=first_step, steps=steps, seq_len=seq_len, global_batch_size=global_batch_size,
        micro_batch_size=1, accumulation_steps=global_batch_size, **nothing,
    )  # fmt: skip


def test_what_was_read_since_the_checkpoint_is_left_out_of_the_samples_of_each_length():
    phases = (_phase(1, 0, 10, 128, 32), _phase(2, 10, 5, 512, 8), _phase(3, 15, 10, 128, 64))
    assert skipped_between(phases, 4, 7) == (SkippedRows(4, 128, 3 * 32),)
    assert skipped_between(phases, 8, 12) == (SkippedRows(8, 128, 2 * 32), SkippedRows(8, 512, 2 * 8))
    assert skipped_between(phases, 8, 17) == (SkippedRows(8, 128, 2 * 32 + 2 * 64), SkippedRows(8, 512, 5 * 8))
    both = skipped_between(phases, 4, 7) + skipped_between(phases, 8, 12)
    assert (count_skipped_rows(both, 128), count_skipped_rows(both, 512), count_skipped_rows(both, 64)) == (160, 16, 0)


def test_a_spike_says_the_step_the_loss_and_what_was_usual():
    assert str(Spike(12, 7.5, 2.25)) == "step 12: the loss is 7.500; the median of the steps before is 2.250"
    assert json.loads(json.dumps(Spike(1, math.nan, None).facts)) == {"spike_step": 1, "loss": "nan", "usual": None}
