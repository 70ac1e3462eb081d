"""Entities: spans with a type, from tags of any common scheme and back, and their F1."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

_STARTS, _INSIDE, _ENDS, _SINGLE = "B", "IM", "EL", "SUW"
OUTSIDE = "O"


class Entity(NamedTuple):
    """A span ``start ... end - 1`` of characters (or of tags) and its type."""

    start: int
    end: int
    type: str


def entities_of(tags: Sequence[str]) -> list[Entity]:
    """The spans that ``tags`` mark, in places of ``tags``.

    BIO, BMES, BIOES and BILOU alike. What follows no fitting beginning begins an entity of its own, as in the CoNLL
    evaluation, so every sequence of tags has exactly one reading.

    Raises:
        ValueError: If a tag is of no such scheme.
    """
    found: list[Entity] = []
    start, kind = 0, ""
    for place, tag in enumerate([*tags, OUTSIDE]):
        prefix, kind_here = _split(tag)
        if kind and (kind_here != kind or prefix in (_STARTS, *_SINGLE)):
            found.append(Entity(start, place, kind))
            kind = ""
        if kind_here and not kind:
            start, kind = place, kind_here
        if kind and prefix in (*_ENDS, *_SINGLE):
            found.append(Entity(start, place + 1, kind))
            kind = ""
    return found


def _split(tag: str) -> tuple[str, str]:
    """(prefix, type), both "" outside of an entity."""
    if tag == OUTSIDE:
        return "", ""
    prefix, dash, kind = tag.partition("-")
    if not dash or not kind or prefix not in (_STARTS, *_INSIDE, *_ENDS, *_SINGLE):
        raise ValueError(
            f"the tag {tag!r} is of no known scheme; expected O, or such as B-PER (BIO, BMES, BIOES, BILOU)"
        )
    return prefix, kind


def tag_names(types: Iterable[str]) -> list[str]:
    """O, then B and I of every type, as the model's outputs are numbered."""
    return [OUTSIDE, *(f"{prefix}-{kind}" for kind in types for prefix in "BI")]


def entity_scores(found: Sequence[Sequence[Entity]], answers: Sequence[Sequence[Entity]]) -> dict[str, float]:
    """Precision, recall and F1 over all texts; an entity is right if start, end and type are.

    A ratio without anything to count is 0, except that nothing found where nothing was to be found is 1.
    """
    found_sets, answer_sets = [set(spans) for spans in found], [set(spans) for spans in answers]
    right = sum(len(a & b) for a, b in zip(found_sets, answer_sets, strict=True))
    num_found, num_answers = sum(map(len, found_sets)), sum(map(len, answer_sets))
    if not num_found and not num_answers:
        return {"f1": 1.0, "precision": 1.0, "recall": 1.0}
    return {
        "f1": 2 * right / (num_found + num_answers),
        "precision": right / max(1, num_found),
        "recall": right / max(1, num_answers),
    }
