"""Toy data sets whose right answers are visible in the text, and an encoder of a few kilobytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.downstream.evaluate.zero_shot.tiny_models import export_roformer

LETTERS = list("abcdefgh")
Record = dict[str, Any]


def write_records(path: Path, records: list[Record]) -> None:
    """A JSON Lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def make_files(folder: Path, make: Callable[[np.random.Generator], Record], **sizes: int) -> None:
    """``folder``/SPLIT.jsonl with so many records each; no two files share their numbers."""
    for number, (split, size) in enumerate(sizes.items()):
        random = np.random.default_rng([7, number])
        write_records(folder / f"{split}.jsonl", [make(random) for _ in range(size)])


def letters(random: np.random.Generator, size: int, of: list[str] = LETTERS) -> list[str]:
    """Drawn one by one."""
    return [str(letter) for letter in random.choice(of, size)]


def text_with_a_label(random: np.random.Generator) -> Record:
    """Label ``yes`` if the text begins with an x, ``no`` if with a y."""
    label = str(random.choice(["yes", "no"]))
    return {"text": " ".join(["x" if label == "yes" else "y", *letters(random, 5)]), "label": label}


def text_with_a_random_label(random: np.random.Generator) -> Record:
    """A label that nothing tells."""
    return text_with_a_label(random) | {"label": str(random.choice(["yes", "no"]))}


def pair_with_a_label(random: np.random.Generator) -> Record:
    """The second text says it."""
    record = text_with_a_label(random)
    return {"text_a": " ".join(letters(random, 4)), "text_b": record["text"], "label": record["label"]}


def text_with_entities(random: np.random.Generator) -> Record:
    """Every x is a person, every ``y z`` a place."""
    tokens: list[str] = []
    tags: list[str] = []
    for _ in range(5):
        kind = random.integers(3)
        tokens += [["x"], ["y", "z"], [str(random.choice(LETTERS))]][kind]
        tags += [["B-person"], ["B-place", "I-place"], ["O"]][kind]
    return {"tokens": tokens, "tags": tags}


def question_with_an_answer(random: np.random.Generator) -> Record:
    """The answer is the letter z, wherever it stands."""
    words = letters(random, 8)
    place = int(random.integers(8))
    words[place] = "z"
    return {"context": " ".join(words), "question": "where z", "answers": [{"text": "z", "start": 2 * place}]}


def choice_of_options(random: np.random.Generator) -> Record:
    """The right option holds an x; there are two or three of them."""
    size = int(random.integers(2, 4))
    label = int(random.integers(size))
    options = [f"{'x' if number == label else 'y'} {random.choice(LETTERS)}" for number in range(size)]
    return {"context": " ".join(letters(random, 4)), "question": "q", "options": options, "label": label}


def make_encoder(folder: Path) -> Path:
    """A random RoFormerV2 with two layers and a vocabulary of letters, exported."""
    return export_roformer(folder)
