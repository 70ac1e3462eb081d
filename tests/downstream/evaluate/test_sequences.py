import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.downstream.sequences import batches, padded


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60), st.integers(1, 200))
def test_every_sequence_is_in_one_batch_and_batches_fit(lengths, limit):
    found = list(batches(np.array(lengths), limit))
    assert sorted(np.concatenate(found).tolist()) == list(range(len(lengths)))
    for batch in found:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= limit
    longest = [max(lengths[i] for i in batch) for batch in found]
    assert longest == sorted(longest, reverse=True)


def test_rows_are_filled_up_after_their_end():
    rows = padded([np.array([1, 2, 3]), np.array([4])], 9)
    assert rows.tolist() == [[1, 2, 3], [4, 9, 9]]
