"""A model's answer to a text, attributed to the tokens of the text.

What is explained is the log-odds of the answer, log p / (1 - p), against all other answers of the same head: for two
classes the difference of their logits.

Along the path only the text's own tokens move; [CLS], [SEP] and [MASK] stay. It starts, by default, where every one of
them is the embedding of [MASK]: an input that the model knows, and that says "a word, whichever". The other choice,
zero, is an input it never saw, and the first norm scales vectors near it up to whole words.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kexue_train.downstream.evaluate.integrated_gradients import Attribution, integrated_gradients
from kexue_train.downstream.load_model import (
    LoadedHead,
    load_masked_lm,
    load_model_tokenizer,
    load_next_sentence_model,
    load_pretrained,
    require_weights,
)
from kexue_train.downstream.results.explanation import Explanation, TokenShare
from kexue_train.downstream.settings import HeadName, PathStart
from kexue_train.foundation.errors import EvaluationError

_TOLERANCE = 0.01
_FIRST_STEPS, _MOST_STEPS = 16, 512
_NSP_ANSWERS = ("is next", "is random")


def explain_answer(
    model_dir: Path,
    text: str,
    text_b: str | None = None,
    *,
    head: HeadName | None = None,
    answer: str | None = None,
    baseline: PathStart = "mask",
) -> Explanation:
    """Ask the model in ``model_dir`` and attribute its answer.

    Args:
        model_dir: Exported model, or any of transformers with the head.
        text: With one [MASK] for the ``mlm`` head.
        text_b: The other text of a pair, which ``nsp`` needs.
        head: By default ``mlm`` for a text with [MASK], else ``classification`` if the folder has that head, else
            ``nsp``.
        answer: The label or word to explain; by default the most probable.
        baseline: Where the path starts: ``mask`` or ``zero`` embeddings.

    Raises:
        EvaluationError: If the model lacks the head or is damaged, the text does not fit it, or the answer is unknown.
        ResourceError: If transformers is not installed.
    """
    tokenizer = load_model_tokenizer(model_dir, ("cls_token", "sep_token", "mask_token"))
    if not tokenizer.is_fast:
        raise EvaluationError(
            f"{model_dir}: the tokenizer does not tell where its tokens stand in a text; save it as tokenizer.json"
        )
    head = head or _guess_head(model_dir, [text, text_b or ""], tokenizer)
    asked = _Asked.make(_load(model_dir, head, tokenizer), head, text, text_b)
    words = asked.loaded.model.get_input_embeddings()(asked.ids)[0].detach()
    with torch.no_grad():
        probabilities = asked.logits(words[None])[0].double().softmax(-1)
    if not probabilities.isfinite().all():
        raise EvaluationError(
            f"{model_dir}: its answer is NaN, so its weights are damaged; export the checkpoint again"
        )
    number = int(probabilities.argmax()) if answer is None else _find(answer, asked.answers)
    start = words.clone()
    start[asked.moves] = 0.0 if baseline == "zero" else asked.embedding_of(tokenizer.mask_token_id)
    found = _until_complete(lambda points: _log_odds(asked.logits(points), number), words, start)
    values = found.values.sum(-1).tolist()
    return Explanation(
        head=head,
        answer=asked.answers[number],
        probability=float(probabilities[number]),
        baseline=baseline,
        at_input=found.at_input,
        at_baseline=found.at_baseline,
        gap=found.gap,
        steps=found.steps,
        pieces=[
            TokenShare(text=piece, value=value, is_special=not moves)
            for piece, value, moves in zip(asked.pieces, values, asked.moves.tolist(), strict=True)
        ],
    )


@dataclass(frozen=True)
class _Asked:
    """A text in tokens, and the head that is asked."""

    loaded: LoadedHead
    ids: Tensor
    """[1, S]"""
    types: Tensor
    """[1, S]"""
    pieces: list[str]
    """Every token as it stands in the text."""
    moves: Tensor
    """[S], bool: the text's own tokens."""
    slot: int | None
    """Where the answer stands; None for an answer about the whole."""
    answers: list[str]

    @classmethod
    def make(cls, loaded: LoadedHead, head: HeadName, text: str, text_b: str | None) -> _Asked:
        """Bring the texts into tokens.

        Raises:
            EvaluationError: If a text is missing, too long, or has no token of its own, or there is not one [MASK].
        """
        tokenizer = loaded.tokenizer
        ids, pieces, types = [tokenizer.cls_token_id], [f"{tokenizer.cls_token} "], [0]
        for segment, part in enumerate(part for part in (text, text_b) if part is not None):
            part_ids, part_pieces = _spell(tokenizer, part)
            ids += [*part_ids, tokenizer.sep_token_id]
            pieces += [*part_pieces, f" {tokenizer.sep_token} "]
            types += [segment] * (len(part_ids) + 1)
        if loaded.longest_input is not None and len(ids) > loaded.longest_input:
            raise EvaluationError(
                f"the text has {len(ids)} tokens with [CLS] and [SEP], the model takes {loaded.longest_input}; "
                "shorten the text"
            )
        if head == "nsp" and text_b is None:
            raise EvaluationError("an NSP head says whether one text follows another; give the other one: --pair TEXT")
        special = [tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id]
        moves = ~np.isin(ids, special)
        if not moves.any():
            raise EvaluationError("the text has only special tokens, so there is nothing to attribute")
        return cls(
            loaded,
            torch.tensor([ids], device=loaded.device),
            torch.tensor([types], device=loaded.device),
            pieces,
            torch.from_numpy(moves),
            _mask_slot(ids, tokenizer.mask_token_id) if head == "mlm" else None,
            _answers(loaded, head),
        )

    def logits(self, words: Tensor) -> Tensor:
        """Return the logits [n, answers] of word embeddings [n, S, E]."""
        types, mask = self.types.expand(len(words), -1), torch.ones(words.shape[:2], dtype=torch.long).to(words.device)
        logits: Tensor = self.loaded.model(inputs_embeds=words, attention_mask=mask, token_type_ids=types).logits
        return logits if self.slot is None else logits[:, self.slot, : len(self.answers)]

    def embedding_of(self, token: int) -> Tensor:
        """Return the row [E] of the word table."""
        embedding: Tensor = self.loaded.model.get_input_embeddings()(self.ids.new_tensor(token)).detach()
        return embedding


def _guess_head(model_dir: Path, texts: list[str], tokenizer: Any) -> HeadName:
    if any(tokenizer.mask_token in text for text in texts):
        return "mlm"
    try:
        architectures = json.loads((model_dir / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    except (OSError, ValueError):
        architectures = []  # loading says what is wrong
    return "classification" if any("SequenceClassification" in name for name in architectures) else "nsp"


def _load(model_dir: Path, head: HeadName, tokenizer: Any) -> LoadedHead:
    if head == "nsp":
        loaded = load_next_sentence_model(model_dir)
    elif head == "mlm":
        loaded = load_masked_lm(model_dir)
    else:
        kind = "a model with a head for classification"
        model, missing = load_pretrained(model_dir, "AutoModelForSequenceClassification", kind)
        require_weights(model_dir, missing)
        loaded = LoadedHead(model, tokenizer, model_dir)
    loaded.model.requires_grad_(False)  # only the gradient of the input is asked for
    return loaded


def _spell(tokenizer: Any, text: str) -> tuple[list[int], list[str]]:
    """Return the tokens of ``text``, and each as it stands there, with the space before it."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ends = [end for _, end in encoded["offset_mapping"]]
    return encoded["input_ids"], [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _mask_slot(ids: list[int], mask: int) -> int:
    if ids.count(mask) != 1:
        raise EvaluationError(
            f"the text has [MASK] {ids.count(mask)} times; write it once, where a word is to be guessed"
        )
    return ids.index(mask)


def _answers(loaded: LoadedHead, head: HeadName) -> list[str]:
    if head == "mlm":
        return [str(token) for token in loaded.tokenizer.convert_ids_to_tokens(range(len(loaded.tokenizer)))]
    if head == "nsp":
        return list(_NSP_ANSWERS)
    labels = loaded.model.config.id2label
    return [str(labels[number]) for number in range(len(labels))]


def _find(answer: str, answers: list[str]) -> int:
    if answer not in answers:
        shown = ", ".join(answers) if len(answers) <= 20 else "a token of its vocabulary"
        raise EvaluationError(f"the model has no answer {answer!r}; give {shown}")
    return answers.index(answer)


def _log_odds(logits: Tensor, number: int) -> Tensor:
    """Return the log-odds [n] of one answer, from logits [n, answers]."""
    logits = logits.float()
    others = torch.cat((logits[:, :number], logits[:, number + 1 :]), 1)
    return logits[:, number] - others.logsumexp(1)


def _until_complete(function: Callable[[Tensor], Tensor], words: Tensor, start: Tensor) -> Attribution:
    """Integrate with as many points of the path as it takes, up to a limit."""
    steps = _FIRST_STEPS
    while True:
        found = integrated_gradients(function, words, start, steps=steps)
        way = abs(found.at_input - found.at_baseline)
        if found.gap <= _TOLERANCE * way or 2 * steps > _MOST_STEPS:
            return found
        steps *= 2
