from __future__ import annotations

import itertools
from collections import Counter

import numpy as np

from kexue_train.shuffle.keys import position_keys, to_integers
from kexue_train.shuffle.proof import measure_mixing
from kexue_train.shuffle.text_shards import iter_texts

CHI_SQUARE_23 = 49.7  # exceeded with probability 0.001 at 23 degrees of freedom


def orders(num_rows: int, seeds: range) -> Counter[tuple[int, ...]]:
    """Permutations of rows that lie at line offsets, as the sort by key gives them."""
    positions = np.arange(num_rows, dtype=np.uint64) * np.uint64(37)
    found: Counter[tuple[int, ...]] = Counter()
    for seed in seeds:
        keys = to_integers(position_keys(seed, 3, positions))
        found[tuple(sorted(range(num_rows), key=keys.__getitem__))] += 1
    return found


def chi_square(counts: Counter[tuple[int, ...]], num_cells: int) -> float:
    expected = counts.total() / num_cells
    return sum((counts[cell] - expected) ** 2 / expected for cell in counts) + (num_cells - len(counts)) * expected


def test_all_24_orders_of_four_rows_are_equally_likely():
    found = orders(4, range(24 * 250))
    assert len(found) == 24
    assert chi_square(found, 24) < CHI_SQUARE_23


def test_every_order_of_five_rows_is_reached():
    assert len(orders(5, range(120 * 12))) == 120


def test_a_published_file_lies_in_the_order_of_the_keys(tmp_path, make_corpus, shuffle):
    path = make_corpus(tmp_path / "a.jsonl", "abcd")
    offsets = np.arange(4, dtype=np.uint64) * np.uint64(len('{"text": "a"}\n'))
    for seed in range(8):
        shuffle(path, tmp_path / f"out{seed}", seed=seed, shards=1 + seed % 3)
        keys = dict(zip("abcd", to_integers(position_keys(seed, 0, offsets)), strict=True))
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
    assert measure_mixing(np.array([[100, 0], [0, 100]])) == {"chi_square": 200.0, "degrees_of_freedom": 1}


def test_where_a_row_lay_says_nothing_about_where_it_goes():
    keys = position_keys(5, 0, np.arange(0, 1_000_000, 10, dtype=np.uint64))
    correlation = np.corrcoef(np.arange(100_000), keys[0].astype(float))[0, 1]
    assert abs(correlation) < 4 / np.sqrt(100_000)
