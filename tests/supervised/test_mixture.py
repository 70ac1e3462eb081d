"""Which task a micro-batch is of: exact shares, the same on any number of ranks, a function of its number alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from kexue_train.batches.labelled import lay_out
from kexue_train.batches.loader import Plan
from kexue_train.batches.mixed import exact_shares
from kexue_train.samples.mlm import MaskingRates
from kexue_train.train.data import micro_batches_of_step
from kexue_train.train.phases import Phase
from tests.supervised.conftest import MIX
from tests.supervised.tiny_tasks import open_mix


@pytest.mark.parametrize("seed", [0, 7])
def test_every_window_has_exactly_the_shares_of_the_mix(mix, seed):
    data, window = open_mix(mix), sum(MIX.values())
    for first in (0, 5 * window):
        found = Counter(data.task_at(number, seed)[0] for number in range(first, first + window))
        assert found == MIX


def test_a_task_reads_its_own_micro_batches_one_after_the_other(mix):
    data = open_mix(mix)
    seen: Counter[str] = Counter()
    for number in range(3 * sum(MIX.values())):
        task, own = data.task_at(number, seed=7)
        assert own == seen[task]
        seen[task] += 1


def test_shares_lose_common_factors_and_odd_numbers_keep_one_in_ten_thousand():
    assert exact_shares([60, 20, 20]) == (3, 1, 1)
    assert exact_shares([0.5, 0.25, 0.25]) == (5000, 2500, 2500)
    with pytest.raises(ValueError, match="above 0"):
        exact_shares([1, 0])


def batches_of(data, *, ranks, accumulation, steps=6, size=2):
    """The micro-batches of every step, in the order of their numbers."""
    found = []
    for step in range(steps):
        for place in range(accumulation):
            for rank in range(ranks):
                plan = Plan(seed=7, rank=rank, world_size=ranks, micro_batch_size=size, accumulation_steps=accumulation,
                            global_batch_size=ranks * accumulation * size, rates=MaskingRates())  # fmt: skip
                found.append(plan.make(data, step * accumulation + place))
    return found


def test_rows_skipped_after_a_spike_are_whole_micro_batches_and_weights_are_told_of_those_that_are_read(mix):
    data, skipped_steps, size, places = open_mix(mix), 3, 2, 4
    phase = Phase(number=1, first_step=0, steps=9, seq_len=32, global_batch_size=places * size, micro_batch_size=size,
                  accumulation_steps=places, rows_before=0, all_rows_before=0, micro_steps_before=0)  # fmt: skip
    rows_skipped = skipped_steps * phase.global_batch_size
    plan = Plan(seed=7, rank=0, world_size=1, micro_batch_size=size, accumulation_steps=places,
                global_batch_size=places * size, rows_before=rows_skipped)  # fmt: skip
    for step in range(3):
        read: Counter[str] = Counter()
        for place in range(places):
            number = step * places + place
            later = number + skipped_steps * places
            found, wanted = plan.make(data, number), data.make_batch(later, size, seed=7, rates=MaskingRates())
            assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
            read[data.task_at(later, 7)[0]] += 1
        assert micro_batches_of_step(7, phase, data, rows_skipped, step + 1) == read


def test_two_ranks_read_the_micro_batches_of_one(mix):
    data = open_mix(mix)
    one, two = batches_of(data, ranks=1, accumulation=4), batches_of(data, ranks=2, accumulation=2)
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys()
        assert all(np.array_equal(first[name], second[name]) for name in first)


def test_a_micro_batch_is_of_one_task(mix):
    data = open_mix(mix)
    for number, batch in enumerate(batches_of(data, ranks=1, accumulation=2)):
        task, _ = data.task_at(number, seed=7)
        targets = {name.removesuffix("_slots") for name in batch if name.endswith("_slots")}
        assert targets == ({"prediction", "pair"} if task == "mlm" else {task})


def test_sequences_are_laid_side_by_side_and_lose_nothing(mix):
    task = next(task for task in open_mix(mix).tasks if task.name == "chosen")
    batch = task.make_batch(np.array([0, 11, 12]))
    ids, sequences = batch["input_ids"], batch["sequence_ids"]
    assert ids.shape[1] == task.width
    firsts = batch["sequence_starts"][:-1]
    assert (np.diff(batch["sequence_starts"]) > 0).all()
    real = sequences.ravel()[firsts] > 0
    assert (batch["position_ids"].ravel()[firsts] == 0).all()
    alone = [row["input_ids"][row["sequence_ids"] > 0] for row in (task.make_batch(np.array([n])) for n in (0, 11, 12))]
    assert np.array_equal(ids[sequences > 0], np.concatenate(alone))
    assert real.sum() == len(batch["chosen_slots"])


def test_layout_fills_rows_in_order():
    firsts, rows = lay_out(np.array([4, 5, 2, 10]), width=10)
    assert firsts.tolist() == [0, 4, 10, 20]
    assert rows == 3
