"""What a masked language model writes at [MASK]: its first choices, how probable given words are, whole sentences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kexue_train.downstream.evaluate.config import MASK
from kexue_train.downstream.load_model import LoadedHead, LoadedModel, load_model, load_model_tokenizer
from kexue_train.downstream.results.held_out import SentenceScore
from kexue_train.downstream.sequences import Ids, batches, encode, padded, tokens_at_once
from kexue_train.foundation.errors import EvaluationError
from kexue_train.foundation.progress import SILENT, Progress

_MAX_LOGITS = 1 << 26  # at once: 256 MiB in fp32


@dataclass(frozen=True)
class Cloze:
    """A sequence with masks, and what may stand there."""

    ids: Ids
    """(S,) special tokens and masks included."""
    slots: Ids
    """(k,) positions of the masks."""
    words: Ids
    """(K, k) candidates."""


def masked_word_scores(
    loaded: LoadedHead, clozes: Sequence[Cloze], on_tokens: Callable[[int, int], None] = lambda _done, _total: None
) -> list[npt.NDArray[np.float64]]:
    """Return the log-probabilities of the candidates of every cloze in nats: (K,), summed over its k masks.

    Raises:
        EvaluationError: If a score is not finite.
    """
    lengths = np.array([len(cloze.ids) for cloze in clozes])
    at_once = min(tokens_at_once(loaded.device), _MAX_LOGITS // loaded.model.config.vocab_size)
    scores: list[npt.NDArray[np.float64]] = [np.empty(0)] * len(clozes)
    done = 0
    for batch in batches(lengths, at_once):
        for index, found in zip(batch, _score(loaded, [clozes[i] for i in batch]), strict=True):
            scores[index] = found
        done += int(lengths[batch].sum())
        on_tokens(done, int(lengths.sum()))
    if not all(np.isfinite(found).all() for found in scores):
        raise EvaluationError(
            f"{loaded.folder}: the model gives values that are not finite at masks, so it is damaged or training "
            "diverged; evaluate an earlier checkpoint"
        )
    return scores


@torch.inference_mode()
def _score(loaded: LoadedHead, clozes: Sequence[Cloze]) -> list[npt.NDArray[np.float64]]:
    ids = padded([cloze.ids for cloze in clozes], loaded.tokenizer.pad_token_id or 0)
    is_token = padded([np.ones(len(cloze.ids), np.int64) for cloze in clozes], 0)
    logits = loaded.model(
        input_ids=torch.from_numpy(ids).to(loaded.device), attention_mask=torch.from_numpy(is_token).to(loaded.device)
    ).logits[..., : len(loaded.tokenizer)]  # the word table may have more rows, which are no words
    found = []
    for row, cloze in zip(logits, clozes, strict=True):
        log_probabilities = row[torch.from_numpy(cloze.slots).to(row.device)].double().log_softmax(-1)
        words = torch.from_numpy(cloze.words).to(row.device)
        found.append(log_probabilities[torch.arange(len(cloze.slots), device=row.device), words].sum(1).cpu().numpy())
    return found


def read_sentences(path: Path) -> list[str]:
    """Return the lines of a text file that are not blank.

    Raises:
        EvaluationError: If it cannot be read, or holds no sentence.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path}: cannot be read as a UTF-8 text file ({error})") from None
    if not (sentences := [line.strip() for line in lines if line.strip()]):
        raise EvaluationError(f"{path}: holds no sentence; expected one per line")
    return sentences


def pseudo_perplexities(
    loaded: LoadedHead, sentences: Sequence[str], progress: Progress = SILENT
) -> list[SentenceScore]:
    """Return the exponential of the mean negative log-probability of the tokens of each sentence, each masked alone.

    Raises:
        EvaluationError: If a sentence has no token or too many, or a score is not finite.

    Source: Salazar et al., "Masked Language Model Scoring" (ACL 2020).
    """
    encoded = encode(loaded.tokenizer, sentences)
    clozes = [
        cloze for ids, text in zip(encoded, sentences, strict=True) for cloze in _one_mask_each(loaded, ids, text)
    ]
    scores = masked_word_scores(loaded, clozes, lambda done, total: progress.update(done, total, "tokens"))
    sums = np.add.reduceat(np.concatenate(scores), np.cumsum([0, *map(len, encoded[:-1])]))
    return [
        SentenceScore(sentence=text, tokens=len(ids), pseudo_perplexity=math.exp(min(-float(total) / len(ids), 700.0)))
        for text, ids, total in zip(sentences, encoded, sums, strict=True)
    ]


def _one_mask_each(loaded: LoadedHead, ids: Ids, sentence: str) -> list[Cloze]:
    longest = loaded.longest_input
    if not 0 < len(ids) <= (longest or len(ids) + 2) - 2:
        raise EvaluationError(
            f"the sentence {sentence[:40]!r} has {len(ids)} tokens; expected at least one and, with [CLS] and "
            f"[SEP], no more than fit {longest or 'the model'}"
        )
    whole = np.concatenate(([loaded.tokenizer.cls_token_id], ids, [loaded.tokenizer.sep_token_id]))
    clozes = []
    for index, token in enumerate(ids.tolist(), 1):
        masked = whole.copy()
        masked[index] = loaded.tokenizer.mask_token_id
        clozes.append(Cloze(masked, np.array([index]), np.array([[token]])))
    return clozes


def complete_sentences(model_dir: Path, sentences: Sequence[str], num_predictions: int = 5) -> list[dict[str, Any]]:
    """Return the most probable tokens at every [MASK] of every sentence.

    Returns:
        Per sentence ``{"sentence": str, "masks": [[{"token": str, "probability": float}, ...] per mask]}``, the most
        probable first.

    Raises:
        EvaluationError: If the model or its tokenizer cannot be loaded, or a sentence holds no mask.
    """
    tokenizer, loaded = load_model_tokenizer(model_dir), load_model(model_dir)
    return [_complete(tokenizer, loaded, sentence, num_predictions) for sentence in sentences]


@torch.inference_mode()
def _complete(tokenizer: Any, loaded: LoadedModel, sentence: str, num_predictions: int) -> dict[str, Any]:
    # The tokenizer's own mask token may be spelt differently from the one users write.
    encoded = tokenizer(sentence.replace(MASK, tokenizer.mask_token), return_tensors="pt")
    input_ids = encoded["input_ids"].to(loaded.device)
    is_mask = input_ids[0] == tokenizer.mask_token_id
    if not bool(is_mask.any()):
        raise EvaluationError(f"the sentence {sentence!r} holds no {MASK}; write {MASK} where a word is to be guessed")
    states = loaded.model.roformer(input_ids).last_hidden_state[0, is_mask]
    logits = loaded.model.cls.predictions(states).float()[:, : len(tokenizer)]
    if not bool(torch.isfinite(logits).all()):
        raise EvaluationError(
            f"the model gives values that are not finite for the sentence {sentence!r}; its weights are damaged"
        )
    top = logits.softmax(-1).topk(min(num_predictions, logits.shape[-1]))
    masks = [
        [
            {"token": str(tokenizer.convert_ids_to_tokens(int(token))), "probability": float(probability)}
            for probability, token in zip(probabilities, tokens, strict=True)
        ]
        for probabilities, tokens in zip(top.values, top.indices, strict=True)
    ]
    return {"sentence": sentence, "masks": masks}
