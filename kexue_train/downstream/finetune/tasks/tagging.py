"""Entities in a text, by a tag per token: reading tags of any common scheme, learning them, scoring entities."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from kexue_train.downstream.finetune.loop import Indices
from kexue_train.downstream.finetune.tasks.problem import NO_LABEL, Predictions, Problem, Scores
from kexue_train.downstream.finetune.tasks.splits import Splits
from kexue_train.downstream.finetune.tasks.task import TaggingTask
from kexue_train.downstream.sequences import Ids, Reader, Segments, Spelled, padded
from kexue_train.downstream.task_files import Record
from kexue_train.foundation.errors import EvaluationError

_STARTS, _INSIDE, _ENDS, _SINGLE = "B", "IM", "EL", "SUW"
OUTSIDE = "O"


class Entity(NamedTuple):
    """A span ``start ... end - 1`` of characters (or of tags) and its type."""

    start: int
    end: int
    type: str


def entities_of(tags: Sequence[str]) -> list[Entity]:
    """Return the spans that ``tags`` mark, as indices of ``tags``.

    BIO, BMES, BIOES and BILOU alike. What follows no fitting beginning begins an entity of its own, as in the CoNLL
    evaluation, so every sequence of tags has exactly one reading.

    Raises:
        ValueError: If a tag is of no such scheme.
    """
    found: list[Entity] = []
    start, kind = 0, ""
    for index, tag in enumerate([*tags, OUTSIDE]):
        prefix, kind_here = _split(tag)
        if kind and (kind_here != kind or prefix in (_STARTS, *_SINGLE)):
            found.append(Entity(start, index, kind))
            kind = ""
        if kind_here and not kind:
            start, kind = index, kind_here
        if kind and prefix in (*_ENDS, *_SINGLE):
            found.append(Entity(start, index + 1, kind))
            kind = ""
    return found


def _split(tag: str) -> tuple[str, str]:
    """Return (prefix, type), both "" outside of an entity."""
    if tag == OUTSIDE:
        return "", ""
    prefix, dash, kind = tag.partition("-")
    if not dash or not kind or prefix not in (_STARTS, *_INSIDE, *_ENDS, *_SINGLE):
        raise ValueError(
            f"the tag {tag!r} is not in a known scheme; expected O, or a tag such as B-PER (BIO, BMES, BIOES, BILOU)"
        )
    return prefix, kind


def tag_names(types: Iterable[str]) -> list[str]:
    """Return O, then B and I of every type, as the model's outputs are numbered."""
    return [OUTSIDE, *(f"{prefix}-{kind}" for kind in types for prefix in "BI")]


def entity_scores(found: Sequence[Sequence[Entity]], answers: Sequence[Sequence[Entity]]) -> dict[str, float]:
    """Return precision, recall and F1 over all texts; an entity is right if start, end and type are.

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


class Marked(NamedTuple):
    """A text and its entities, in characters."""

    text: str
    entities: list[Entity]


class TextPiece(NamedTuple):
    """So much of a text as the model takes; the pieces of a text do not overlap."""

    sequence: Segments
    tags: Ids
    """(length of the sequence,) numbers of the right tags, -100 at special tokens."""
    text: int
    """Index of the text in its split."""
    spans: npt.NDArray[np.int64]
    """(tokens, 2) characters of every token."""


@dataclass(frozen=True, kw_only=True)
class TaggingProblem(Problem):
    """Texts with entities, in pieces of tokens; the outputs are O, then B and I of every type."""

    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    metric: ClassVar[str] = "f1"

    texts: dict[str, list[Marked]]
    pieces: dict[str, list[TextPiece]]

    @classmethod
    def make(cls, task: TaggingTask, splits: Splits, reader: Reader) -> TaggingProblem:
        """Read the records.

        Raises:
            EvaluationError: If a record lacks a value, spans or tags are damaged, a type is not known, or there is no
                entity to learn from.
        """
        reader.require_offsets()
        types = sorted({entity.type for record in splits.all_train for entity in read_marked(task, record).entities})
        if not types:
            raise EvaluationError(f"{task.train}: holds no entity, so there is nothing to learn; check the keys")
        names = tag_names(types)
        texts = {}
        for split, records in splits.by_name.items():
            texts[split] = [read_marked(task, record) for record in records]
            for record, marked in zip(records, texts[split], strict=True):
                _require_known(record, marked, types)
        pieces = {split: list(_pieces(entries, names, reader)) for split, entries in texts.items()}
        return cls(
            reader=reader,
            num_labels=len(names),
            num_examples=len(pieces["train"]),
            label_names=names,
            texts=texts,
            pieces=pieces,
        )

    def predict(self, model: Any, indices: Indices) -> list[Predictions]:  # noqa: D102
        pieces = [self.pieces["train"][index] for index in indices]
        inputs = self.reader.batch([piece.sequence for piece in pieces], model.device)
        tags = torch.from_numpy(padded([piece.tags for piece in pieces], NO_LABEL)).to(model.device)
        logits = model(**inputs).logits.float()
        return [Predictions(logits.flatten(0, 1), tags.flatten())]

    def score(self, model: Any, split: str) -> Scores:  # noqa: D102
        return entity_scores(self.find(model, split), [marked.entities for marked in self.texts[split]])

    @torch.inference_mode()
    def find(self, model: Any, split: str) -> list[list[Entity]]:
        """Return the entities of every text, in characters."""
        pieces = self.pieces[split]
        tags: list[list[str]] = [[] for _ in pieces]
        for indices, inputs in self.reader.in_batches([piece.sequence for piece in pieces], model.device):
            best = model(**inputs).logits.argmax(-1).cpu().numpy()
            for index, row in zip(indices, best, strict=True):
                tags[index] = [self.label_names[number] for number in row[1 : 1 + len(pieces[index].spans)]]
        tags_of: dict[int, list[str]] = defaultdict(list)
        spans_of: dict[int, list[list[int]]] = defaultdict(list)
        for piece, found in zip(pieces, tags, strict=True):
            tags_of[piece.text] += found
            spans_of[piece.text] += piece.spans.tolist()
        return [
            [_in_characters(entity, spans_of[text]) for entity in entities_of(tags_of[text])]
            for text in range(len(self.texts[split]))
        ]


def read_marked(task: TaggingTask, record: Record) -> Marked:
    """Return the text of a record and its entities.

    Raises:
        EvaluationError: If a value is missing, or the spans or tags are damaged.
    """
    if task.tokens is None:
        text = record.text(str(task.text))
        entities = sorted(set(_read_spans(record, task.entities)))
        for entity in entities:
            if not 0 <= entity.start < entity.end <= len(text):
                raise EvaluationError(
                    f"{record.where}: the {entity.type} at {entity.start}:{entity.end} is not inside the text of "
                    f"{len(text)} characters; correct the span"
                )
        return Marked(text, entities)
    tokens, tags = record.texts(task.tokens), record.texts(task.tags)
    if len(tokens) != len(tags):
        raise EvaluationError(f"{record.where}: {len(tokens)} tokens, but {len(tags)} tags; every token needs one")
    try:
        in_tokens = entities_of(tags)
    except ValueError as error:
        raise EvaluationError(f"{record.where}: {error}") from None
    step = len(task.joined_by)
    starts = list(itertools.accumulate((len(token) + step for token in tokens), initial=0))
    entities = [Entity(starts[start], starts[end] - step, kind) for start, end, kind in in_tokens]
    return Marked(task.joined_by.join(tokens), entities)


def _read_spans(record: Record, key: str) -> Iterator[Entity]:
    value = record.value(key)
    try:
        if isinstance(value, list):
            yield from (Entity(int(span["start"]), int(span["end"]), str(span["type"])) for span in value)
        else:
            for kind, mentions in value.items():
                for spans in mentions.values():
                    yield from (Entity(int(start), int(end) + 1, str(kind)) for start, end in spans)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise EvaluationError(
            f"{record.where}: '{key}' holds no spans; expected a list of {{start, end, type}}, or "
            "{type: {mention: [[start, end], ...]}}"
        ) from None


def _require_known(record: Record, marked: Marked, types: Sequence[str]) -> None:
    for entity in marked.entities:
        if entity.type not in types:
            raise EvaluationError(
                f"{record.where}: the type {entity.type!r} is not known; the training set has {', '.join(types)}"
            )


def _pieces(texts: Sequence[Marked], names: Sequence[str], reader: Reader) -> Iterator[TextPiece]:
    number_of = {name: number for number, name in enumerate(names)}
    room = reader.max_length - 2
    for number, (marked, spelled) in enumerate(zip(texts, reader.spell([t.text for t in texts]), strict=True)):
        tags = np.array([number_of[tag] for tag in _tags(marked, spelled)], np.int64)
        reader.num_cut += len(tags) > room
        for start in range(0, len(tags), room):
            part = slice(start, start + room)
            with_special = np.concatenate(([NO_LABEL], tags[part], [NO_LABEL]))
            yield TextPiece(reader.join(spelled.ids[part]), with_special, number, spelled.spans[part])


def _tags(marked: Marked, spelled: Spelled) -> list[str]:
    """Return a BIO tag per token; a token belongs to the first entity that it touches."""
    tags = [OUTSIDE] * len(spelled.ids)
    starts, ends = spelled.spans[:, 0], spelled.spans[:, 1]
    for entity in marked.entities:
        touched = np.flatnonzero((starts < entity.end) & (ends > entity.start))
        free = [index for index in touched if tags[index] == OUTSIDE]
        for number, index in enumerate(free):
            tags[index] = f"{'I' if number else 'B'}-{entity.type}"
    return tags


def _in_characters(entity: Entity, spans: Sequence[Sequence[int]]) -> Entity:
    return Entity(spans[entity.start][0], spans[entity.end - 1][1], entity.type)
