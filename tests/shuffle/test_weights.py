from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from kexue_train.shuffle.weights import Draw, Sampling, plan_sampling


def test_whole_parts_are_copies_and_the_rest_are_tickets():
    samplings, shares = plan_sampling([1.0, 2.0, 0.25, 1.5, 2.25])
    assert samplings == [Sampling(1, 0), Sampling(2, 0), Sampling(0, 1), Sampling(1, 2), Sampling(2, 1)]
    assert shares == [0.25, 0.5]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("offered", [1, 7, 1000])
def test_exactly_the_share_stays_however_the_ranks_lie_over_shards(share, offered):
    edges = [0, offered // 3, offered // 3, offered]
    kept = [
        Draw(3, 1, low, offered, share).stays(start, 1).tolist()[0]
        for low, high in itertools.pairwise(edges)
        for start in range(high - low)
    ]
    whole = Draw(3, 1, 0, offered, share).stays(0, offered)
    assert kept == whole.tolist()
    assert whole.sum() == round(share * offered)


def test_every_choice_of_two_out_of_four_is_as_likely():
    found = Counter(tuple(np.flatnonzero(Draw(seed, 1, 0, 4, 0.5).stays(0, 4)).tolist()) for seed in range(1200))
    assert len(found) == 6
    assert sum((count - 200) ** 2 / 200 for count in found.values()) < 20.5  # 5 degrees of freedom, probability 0.001
