"""The sizes of embedding rows in the metrics, on tables small enough to work out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kexue_train.optim.embedding_rows import embedding_sizes

# Root mean squares 1, 5, 50/√2, 60/√2, 0 and largest elements 1, 7, 50, 60, 0.
TABLE = torch.tensor([[1.0, -1.0], [1.0, -7.0], [50.0, 0.0], [0.0, -60.0], [0.0, 0.0]])


def test_sizes_of_a_table_worked_out_by_hand():
    assert embedding_sizes(TABLE, 0.01) == pytest.approx(
        {
            "embedding_max": 60.0,
            "embedding_drifted_rows": 1 / 5,  # beyond 50, half of 1/λ, is only the fourth row; the third is at it
            "embedding_rms_min": 0.0,
            "embedding_rms_median": 5.0,
            "embedding_rms_max": 60 / math.sqrt(2),
        }
    )


def test_counts_leave_out_rows_without_a_token_and_tell_rare_from_frequent():
    sizes = embedding_sizes(TABLE, 0.01, np.array([9, 2, 4, 1]))  # the fifth row fills the table up
    assert sizes["embedding_rms_min"] == pytest.approx(1.0)
    assert sizes["embedding_rms_median"] == pytest.approx((5 + 50 / math.sqrt(2)) / 2)
    assert sizes["embedding_rms_rare"] == pytest.approx((5 + 60 / math.sqrt(2)) / 2)
    assert sizes["embedding_rms_frequent"] == pytest.approx((1 + 50 / math.sqrt(2)) / 2)
    absent = embedding_sizes(TABLE, 0.01, np.array([9, 0, 4, 0]))
    assert absent["embedding_rms_max"] == pytest.approx(50 / math.sqrt(2))
    assert (absent["embedding_max"], absent["embedding_drifted_rows"]) == (60.0, 0.2)  # those look at every row


def test_one_token_is_rare_and_frequent_at_once_and_none_is_neither():
    only = embedding_sizes(TABLE, 0.01, np.array([0, 3]))
    assert {only[f"embedding_rms_{name}"] for name in ("min", "median", "max", "rare", "frequent")} == {5.0}
    assert embedding_sizes(TABLE, 0.01, np.array([0, 0])).keys() == {"embedding_max", "embedding_drifted_rows"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_random_table_has_the_sizes_that_numpy_finds(dtype):
    table = torch.randn(300, 40, generator=torch.Generator().manual_seed(0)).mul_(30).to(dtype)
    exact = table.double().numpy()
    counts = np.random.default_rng(1).permutation(300)
    sizes, rms = embedding_sizes(table, 0.005, counts), np.sqrt((exact**2).mean(1))
    rare = (counts > 0) & (counts <= 150)
    assert sizes == pytest.approx(
        {
            "embedding_max": np.abs(exact).max(),
            "embedding_drifted_rows": (np.abs(exact) > 100).any(1).mean(),
            "embedding_rms_min": rms[counts > 0].min(),
            "embedding_rms_median": np.median(rms[counts > 0]),
            "embedding_rms_max": rms[counts > 0].max(),
            "embedding_rms_rare": np.median(rms[rare]),
            "embedding_rms_frequent": np.median(rms[counts >= 150]),
        },
        rel=1e-6,  # sums of 40 squares in fp32
    )


def test_without_decay_there_is_nowhere_to_drift_to():
    assert embedding_sizes(TABLE * 1e30, 0.0)["embedding_drifted_rows"] == 0.0


def test_what_is_not_finite_shows():
    assert embedding_sizes(torch.tensor([[1.0, math.inf], [2.0, 3.0]]), 0.01)["embedding_max"] == math.inf
    assert math.isnan(embedding_sizes(torch.tensor([[1.0, math.nan], [2.0, 3.0]]), 0.01)["embedding_max"])


def test_the_table_is_left_alone_and_no_graph_is_kept():
    table = torch.nn.Parameter(TABLE.clone())
    embedding_sizes(table, 0.01)
    assert torch.equal(table, TABLE)
    assert table.grad is None


@pytest.mark.parametrize(
    ("table", "counts"), [(TABLE[0], None), (TABLE, np.arange(6)), (TABLE, np.ones((5, 2), int))], ids=str
)
def test_shapes_that_do_not_fit_are_refused(table, counts):
    with pytest.raises(ValueError, match=r"do not fit; expected \[V, E\]"):
        embedding_sizes(table, 0.01, counts)
