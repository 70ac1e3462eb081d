from __future__ import annotations

from types import SimpleNamespace

import pytest

from kexue_train.report.near_duplicates import near_duplicate_tables


def run_with(statistics):
    return SimpleNamespace(manifests={"shards": SimpleNamespace(statistics=statistics)})


FOUND = {
    "removed": 4,
    "clusters": 2,
    "texts": 6,
    "sizes": {"2": 1, "4": 1},
    "compared": 70,
    "below_threshold": 9,
    "largest": [
        {
            "texts": 4,
            "documents": [
                {"file": "a.jsonl", "position": 0, "is_kept": True, "text": "One  two\nthree."},
                {"file": "b.jsonl", "position": 1234, "is_kept": False, "text": "One two four."},
            ],
        }
    ],
}


def test_clusters_are_counted_by_size_and_the_largest_shown_with_their_texts():
    by_size, largest = near_duplicate_tables(run_with({"near_duplicates": FOUND}))
    assert by_size.rows == [["2", "1", "1"], ["4", "1", "3"]]
    assert "2 clusters of 6 different texts" in by_size.notes[0]
    assert "70 comparisons were made, 9 of them below it" in by_size.notes[0]
    assert largest.rows == [
        ["4 texts", "kept", "a.jsonl, 0", "One two three."],
        ["", "left out", "b.jsonl, 1,234", "One two four."],
    ]


def test_many_sizes_are_told_in_ranges_that_hold_all():
    sizes = {str(size): 2 for size in range(2, 40)}
    by_size, *_ = near_duplicate_tables(run_with({"near_duplicates": FOUND | {"sizes": sizes}}))
    assert [row[0] for row in by_size.rows] == ["2", "3 to 4", "5 to 8", "9 to 16", "17 to 32", "33 to 64"]
    assert sum(int(row[1]) for row in by_size.rows) == 2 * 38
    assert sum(int(row[2].replace(",", "")) for row in by_size.rows) == 2 * sum(size - 1 for size in range(2, 40))


@pytest.mark.parametrize("statistics", [{}, {"duplicates": 3}])
def test_without_a_search_there_is_no_table(statistics):
    assert near_duplicate_tables(run_with(statistics)) == []
