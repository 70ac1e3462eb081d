from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from kexue_train.shuffle.keys import position_keys
from kexue_train.shuffle.mixing import OrderSums, count_groups, rank_correlation, source_mixing
from tests.shuffle.shard_texts import iter_texts


def orders(num_rows: int, seeds: range, num_files: int = 1) -> Counter[tuple[int, ...]]:
    """Permutations of rows that lie at line offsets of some files, as the sort by key gives them."""
    files = np.arange(num_rows) * num_files // num_rows
    found: Counter[tuple[int, ...]] = Counter()
    for seed in seeds:
        keys = [
            position_keys(seed, file, np.arange((files == file).sum(), dtype=np.uint64) * np.uint64(37))
            for file in range(num_files)
        ]
        found[tuple(np.argsort(np.concatenate(keys)).tolist())] += 1
    return found


def limit(degrees_of_freedom: int) -> float:
    """What a chi-square exceeds with probability 0.001, by Wilson and Hilferty's formula."""
    spread = 2 / (9 * degrees_of_freedom)
    return degrees_of_freedom * (1 - spread + 3.09 * math.sqrt(spread)) ** 3


def chi_square(counts: Counter[tuple[int, ...]], num_cells: int) -> float:
    expected = counts.total() / num_cells
    return sum((counts[cell] - expected) ** 2 / expected for cell in counts) + (num_cells - len(counts)) * expected


@pytest.mark.parametrize("num_files", [1, 2, 3])
@pytest.mark.parametrize(("num_rows", "times"), [(4, 60), (5, 15), (6, 15)])
def test_all_orders_of_four_to_six_rows_are_equally_likely(num_rows, times, num_files):
    num_orders = math.factorial(num_rows)
    found = orders(num_rows, range(num_orders * times), num_files)
    assert len(found) == num_orders
    assert chi_square(found, num_orders) < limit(num_orders - 1)


def test_the_limit_is_that_of_the_tables():
    assert limit(23) == pytest.approx(49.73, rel=0.01)


def test_a_published_file_lies_in_the_order_of_the_keys(tmp_path, make_corpus, shuffle):
    path = make_corpus(tmp_path / "a.jsonl", "abcd")
    offsets = np.arange(4, dtype=np.uint64) * np.uint64(len('{"text": "a"}\n'))
    for seed in range(8):
        shuffle(path, tmp_path / f"out{seed}", seed=seed, shards=1 + seed % 3)
        keys = dict(zip("abcd", position_keys(seed, 0, offsets).tolist(), strict=True))
        assert list(iter_texts(tmp_path / f"out{seed}")) == sorted("abcd", key=keys.__getitem__)


def test_the_whole_stage_reaches_every_order_of_three_rows_evenly(tmp_path, make_corpus, shuffle):
    path = make_corpus(tmp_path / "a.jsonl", "abc")
    found: Counter[tuple[str, ...]] = Counter()
    for seed in range(60):
        shuffle(path, tmp_path / str(seed), seed=seed, shards=2)
        found[tuple(iter_texts(tmp_path / str(seed)))] += 1
    assert set(found) == set(itertools.permutations("abc"))
    assert chi_square(found, 6) < 20.5  # exceeded with probability 0.001 at 5 degrees of freedom


def test_sources_are_mixed_over_the_shards_as_chance_has_it(tmp_path, make_corpus, shuffle):
    for file in range(3):
        make_corpus(tmp_path / "in" / f"{file}.jsonl", [f"{file} {i}" for i in range(1000 * (file + 1))])
    mixing = shuffle(tmp_path / "in", tmp_path / "out", shards=5).statistics["source_mixing"]
    assert mixing["degrees_of_freedom"] == 8
    assert 0.5 < mixing["chi_square"] < 26.1  # below and above with probability 0.001


def test_unmixed_sources_are_told():
    assert source_mixing(np.array([[100, 0], [0, 100]])) == {
        "chi_square": 200.0,
        "degrees_of_freedom": 1,
        "worst_shard": {"shard": 0, "chi_square": 100.0, "degrees_of_freedom": 1},
    }


def test_many_files_are_taken_together_in_their_order():
    table = count_groups([(0, [1, 0]), (63, [0, 2]), (64, [0, 3]), (99, [4, 0])], num_files=100, num_shards=2)
    assert table.shape == (32, 2)
    assert (table[0].tolist(), table[20].tolist(), table[31].tolist()) == ([1, 0], [0, 5], [4, 0])


def test_the_rank_correlation_is_that_of_numpy():
    random = np.random.default_rng(0)
    origins = np.sort(random.integers(0, 9, 500)).astype(np.uint32)
    origins[::3] = random.integers(0, 9, len(origins[::3]))
    shards = [OrderSums() for _ in range(3)]
    for shard, (low, high) in zip(shards, [(0, 200), (200, 200), (200, 500)], strict=True):
        for start in range(low, high, 64):
            shard.add(origins[start : min(start + 64, high)], start - low)
    found = rank_correlation(shards)
    assert found is not None
    assert abs(found["coefficient"] - np.corrcoef(origins.astype(float), np.arange(500))[0, 1]) < 1e-6
    assert found["standard_deviation"] == round(1 / np.sqrt(499), 6)


def test_one_piece_of_input_has_no_rank_correlation():
    sums = OrderSums()
    sums.add(np.zeros(10, np.uint32), 0)
    assert rank_correlation([sums]) is None


def test_where_a_row_lay_says_nothing_about_where_it_goes():
    keys = position_keys(5, 0, np.arange(0, 1_000_000, 10, dtype=np.uint64))
    correlation = np.corrcoef(np.arange(100_000), keys.astype(float))[0, 1]
    assert abs(correlation) < 4 / np.sqrt(100_000)


def test_a_shuffled_corpus_shows_no_trace_of_its_input_order(tmp_path, make_corpus, shuffle, monkeypatch):
    monkeypatch.setattr("kexue_train.shuffle.plan._MIN_RANGE_BYTES", 10_000)
    path = make_corpus(tmp_path / "a.jsonl", [f"document {i}" for i in range(20_000)])
    found = shuffle(path, tmp_path / "out", shards=3).statistics["rank_correlation"]
    assert abs(found["coefficient"]) < 4 * found["standard_deviation"]
