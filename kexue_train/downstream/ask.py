"""Questions to the checkpoints of a run, also while it goes on: words at [MASK], and which sentences are alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kexue_train.downstream.evaluate.config import MASK
from kexue_train.downstream.evaluate.masked_words import complete_sentences
from kexue_train.downstream.evaluate.sentence_vectors.encode_sentences import Sentences, encode_sentences
from kexue_train.downstream.load_model import load_encoder
from kexue_train.downstream.results.result import ResultTable
from kexue_train.downstream.settings import Pooling
from kexue_train.foundation.errors import EvaluationError

_POOLING: Pooling = "mean"
_LONGEST_SHOWN = 60


def find_checkpoints(folder: Path, steps: Sequence[int] = ()) -> dict[str, Path]:
    """Return what to ask: name -> folder that transformers can load, in the order of the steps.

    Args:
        folder: Of a run, of its training, of a checkpoint, or of any model.
        steps: Of a run or a training, which checkpoints; by default the oldest that is kept, and the newest.

    Raises:
        EvaluationError: If there is none, or none of a step that is asked for.
    """
    if (folder / "config.json").is_file():
        if steps:
            raise EvaluationError(f"{folder}: is one model; --step chooses among the checkpoints of a run")
        return {folder.name: folder}
    places = (folder / "pretrain" / "checkpoints", folder / "checkpoints", folder)
    found = sorted(path for place in places for path in place.glob("step-*[0-9]") if (path / "config.json").is_file())
    if not found:
        raise EvaluationError(
            f"{folder}: no checkpoint yet; give the folder of a run whose training has saved one, or of a model"
        )
    by_step = {int(path.name.removeprefix("step-")): path for path in found}
    if missing := [step for step in steps if step not in by_step]:
        there = ", ".join(f"{step:,}" for step in by_step)
        raise EvaluationError(f"{folder}: no checkpoint of step {missing[0]:,}; there are those of steps {there}")
    chosen = sorted(set(steps)) or sorted({min(by_step), max(by_step)})
    return {f"step {step:,}": by_step[step] for step in chosen}


def ask(checkpoints: Mapping[str, Path], texts: Sequence[str], num_answers: int = 5) -> list[ResultTable]:
    """Return one table for each text with [MASK], and one of the sentences most like the first of the other texts.

    Args:
        checkpoints: Name -> folder; each is a column.
        texts: Sentences with [MASK]; of those without, the others are compared with the first.
        num_answers: Rows of each table.

    Raises:
        EvaluationError: If there is nothing to ask, or a model cannot be loaded or is damaged.
    """
    with_masks, plain = [text for text in texts if MASK in text], [text for text in texts if MASK not in text]
    if not with_masks and len(plain) < 2:
        raise EvaluationError(
            f"nothing to ask: write {MASK} in a sentence where a word is to be guessed, or give two sentences or more"
        )
    tables = []
    if with_masks:
        guesses = {
            name: _asked(path, complete_sentences, with_masks, num_answers) for name, path in checkpoints.items()
        }
        tables += [_guessed(guesses, number, text) for number, text in enumerate(with_masks)]
    if len(plain) > 1:
        cosines = {name: _asked(path, _cosines, plain) for name, path in checkpoints.items()}
        tables.append(_alike(cosines, plain, num_answers))
    return tables


def _asked(path: Path, question: Any, *arguments: Any) -> Any:
    """Ask one checkpoint, which its training may remove at any moment."""
    try:
        return question(path, *arguments)
    except (EvaluationError, OSError) as error:
        if path.is_dir():
            raise
        raise EvaluationError(f"{path}: was removed while it was read, as newer ones came; ask again") from error


def _guessed(guesses: Mapping[str, Any], number: int, text: str) -> ResultTable:
    columns = {name: answers[number]["masks"] for name, answers in guesses.items()}
    first = next(iter(columns.values()))
    rows = [
        [f"{place + 1}." if len(first) == 1 else f"[MASK] {mask + 1}, {place + 1}."]
        + [f"{column[mask][place]['token']}  {column[mask][place]['probability']:.1%}" for column in columns.values()]
        for mask in range(len(first))
        for place in range(min(len(column[mask]) for column in columns.values()))
    ]
    return ResultTable(text, ["", *columns], rows)


def _cosines(path: Path, sentences: Sequence[str]) -> npt.NDArray[np.float32]:
    """Cosines (n - 1,) of the first sentence's vector with those of the others."""
    loaded = load_encoder(path)
    read = Sentences.read(loaded.tokenizer, sentences, loaded.fitting(512))
    vectors = encode_sentences(loaded, read, [_POOLING])[_POOLING]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors[1:] @ vectors[0], np.float32)


def _alike(cosines: Mapping[str, npt.NDArray[np.float32]], sentences: Sequence[str], num_answers: int) -> ResultTable:
    """The sentences that the last checkpoint finds most alike, with the cosines and places of all."""
    places = {name: np.argsort(np.argsort(-found, kind="stable"), kind="stable") for name, found in cosines.items()}
    order = np.argsort(-list(cosines.values())[-1], kind="stable")[:num_answers]
    rows = [
        [_shown(sentences[index + 1])]
        + [f"{found[index]:.3f}  ({places[name][index] + 1}.)" for name, found in cosines.items()]
        for index in order.tolist()
    ]
    return ResultTable(f"most like {_shown(sentences[0])!r}, by cosines of mean vectors", ["", *cosines], rows)


def _shown(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"
