from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexue_train.shuffle.near import comparing, match
from kexue_train.shuffle.near.comparing import compare
from kexue_train.shuffle.near.documents import ENTRY
from kexue_train.shuffle.near.grouping import spanning_edges
from kexue_train.shuffle.near.minhash import Samples


class Documents:
    """A reader of documents that are sets of small numbers; equal sets are equal texts."""

    def __init__(self, sets):
        self.sets, self.reads = [sorted(entry) for entry in sets], 0

    def entries(self, numbers):
        found = np.zeros(len(numbers), ENTRY)
        found["low"] = [hash(tuple(self.sets[n])) % 2**63 for n in numbers.tolist()]
        return found

    def samples(self, numbers, entries):  # noqa: ARG002
        sets = [self.sets[n] for n in numbers.tolist()]
        self.reads += len(sets)
        bounds = np.concatenate([[0], np.cumsum([len(entry) for entry in sets])])
        return Samples(np.array([value for entry in sets for value in entry], np.uint32), bounds)


def components(edges, nodes):
    root = {node: node for node in nodes}
    for left, right in edges:
        low, high = sorted([root[left], root[right]])
        root = {node: low if value == high else value for node, value in root.items()}
    return root


def expected(sets, groups, threshold):
    """Return what is connected if all pairs in a group are compared, and equal sets are one."""
    edges = []
    for i in range(len(sets)):
        for j in range(i):
            if groups[i] == groups[j]:
                shared = len(sets[i] & sets[j]) / max(len(sets[i] | sets[j]), 1)
                edges += [(i, j)] if sets[i] == sets[j] or shared >= threshold else []
    return components(edges, range(len(sets)))


SETS = st.lists(st.frozensets(st.integers(0, 12), min_size=1), min_size=1, max_size=30)


@settings(max_examples=80, deadline=None)
@given(SETS, st.data())
def test_small_groups_are_connected_as_if_all_pairs_were_compared(sets, data):
    groups = sorted(data.draw(st.lists(st.integers(0, 3), min_size=len(sets), max_size=len(sets))))
    found = compare(np.arange(len(sets), dtype=np.uint64), np.array(groups), Documents(sets), 0.6)
    # Of equal texts that are in different groups the first stands for all, as it would be in both.
    alike = [(i, sets.index(entry)) for i, entry in enumerate(sets)]
    wanted = components(alike + [(i, root) for i, root in expected(sets, groups, 0.6).items()], range(len(sets)))
    assert components(alike + found.edges.tolist(), range(len(sets))) == wanted


def test_a_million_equal_texts_are_read_once_and_compared_never():
    documents = Documents([{1, 2, 3}] * 5000)
    found = compare(np.arange(5000, dtype=np.uint64), np.zeros(5000, np.int64), documents, 0.6)
    assert (len(found.edges), found.compared, documents.reads) == (0, 0, 1)


def test_a_long_run_is_compared_in_time_linear_in_its_length(monkeypatch):
    monkeypatch.setattr(match, "_PIECE", 50)
    rng = np.random.default_rng(0)
    alike = [set(range(100)) - {i} for i in range(100)]
    others = [set(rng.choice(np.arange(200, 10**6), 20).tolist()) for _ in range(100)]
    sets = [entry for pair in zip(alike, others, strict=True) for entry in pair]
    found = match._Found(Documents(sets), 0.9)
    match._match_long([np.arange(0, 120, dtype=np.uint64), np.arange(120, 200, dtype=np.uint64)], found)
    assert found.result.candidates <= 200 * (comparing.MAX_ROUNDS + 1) * 2
    assert {tuple(edge) for edge in found.edges.tolist()} == {(i, 0) for i in range(2, 200, 2)}


@pytest.mark.parametrize("parts", [[7, 93], [1] * 100, [100]])
def test_pieces_of_a_long_run_do_not_depend_on_how_it_comes(monkeypatch, parts):
    monkeypatch.setattr(match, "_PIECE", 16)
    numbers = np.split(np.arange(100, dtype=np.uint64), np.cumsum(parts)[:-1])
    assert [piece.tolist() for piece in match._in_pieces(numbers)] == [
        list(range(start, min(start + 16, 100))) for start in range(0, 100, 16)
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=60), st.integers(1, 4))
def test_components_are_those_of_a_plain_union_find_however_the_edges_are_cut(edges, parts):
    array = np.array(edges, np.uint64).reshape(-1, 2)
    joined = np.zeros((0, 2), np.uint64)
    for part in np.array_split(array, parts):
        joined = spanning_edges(np.concatenate([joined, part]))
    assert joined.tolist() == spanning_edges(array).tolist()
    nodes = {node for edge in edges for node in edge}
    root = components(edges, nodes)
    assert dict(joined.tolist()) == {node: value for node, value in root.items() if node != value}
