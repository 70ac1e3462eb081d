"""Entities from tags and their F1, against slow references."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.downstream.finetune.tasks.tagging import Entity, entities_of, entity_scores, tag_names

SPANS = st.lists(
    st.builds(
        lambda start, size, kind: Entity(start, start + size, kind),
        st.integers(0, 9),
        st.integers(1, 3),
        st.sampled_from("XY"),
    )
)


def read_by_lines(tags):
    """The CoNLL script's reading of BIO: a chunk ends where the next tag is O, B, or of another type."""
    chunks = []
    for place, tag in enumerate(tags):
        kind = tag[2:]
        begins = tag != "O" and (tag[0] == "B" or place == 0 or tags[place - 1] == "O" or tags[place - 1][2:] != kind)
        if begins:
            end = place + 1
            while end < len(tags) and tags[end] == f"I-{kind}":
                end += 1
            chunks.append(Entity(place, end, kind))
    return chunks


def test_every_bio_sequence_of_five_tags_is_read_as_conll_reads_it():
    for tags in itertools.product(["O", "B-X", "I-X", "B-Y", "I-Y"], repeat=5):
        assert entities_of(tags) == read_by_lines(tags), tags


@pytest.mark.parametrize(
    "tags",
    [
        "O B-X I-X I-X O B-Y B-X",
        "O B-X M-X E-X O S-Y S-X",
        "O B-X I-X E-X O S-Y S-X",
        "O B-X I-X L-X O U-Y U-X",
    ],
)
def test_all_schemes_mark_the_same_entities(tags):
    assert entities_of(tags.split()) == [Entity(1, 4, "X"), Entity(5, 6, "Y"), Entity(6, 7, "X")]


def test_two_entities_of_a_type_side_by_side_stay_two():
    assert entities_of(["B-X", "E-X", "B-X", "E-X"]) == [Entity(0, 2, "X"), Entity(2, 4, "X")]


@pytest.mark.parametrize("tag", ["X", "B", "B-", "Q-X", "b-X", ""])
def test_what_is_no_tag_is_refused(tag):
    with pytest.raises(ValueError, match="known scheme"):
        entities_of(["O", tag])


def test_outputs_are_numbered_o_first():
    assert tag_names(["X", "Y"]) == ["O", "B-X", "I-X", "B-Y", "I-Y"]


@given(st.lists(st.tuples(SPANS, SPANS), min_size=1, max_size=4))
def test_f1_is_that_of_counting_one_by_one(texts):
    found, answers = zip(*texts, strict=True)
    right = extra = missed = 0
    for number, kind, start, end in itertools.product(range(len(texts)), "XY", range(13), range(14)):
        entity = Entity(start, end, kind)
        right += entity in found[number] and entity in answers[number]
        extra += entity in found[number] and entity not in answers[number]
        missed += entity not in found[number] and entity in answers[number]
    scores = entity_scores(found, answers)
    if right + extra + missed:
        assert scores["f1"] == pytest.approx(right / (right + (extra + missed) / 2))
        assert scores["precision"] == pytest.approx(right / max(1, right + extra))
        assert scores["recall"] == pytest.approx(right / max(1, right + missed))
    else:
        assert scores == {"f1": 1.0, "precision": 1.0, "recall": 1.0}


def test_a_wrong_border_or_type_is_wrong():
    answers = [[Entity(0, 2, "X")]]
    for found in (Entity(0, 1, "X"), Entity(1, 2, "X"), Entity(0, 2, "Y")):
        assert entity_scores([[found]], answers)["f1"] == 0
