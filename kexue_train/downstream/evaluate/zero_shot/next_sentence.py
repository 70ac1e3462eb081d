"""How likely a model finds each prompt the next sentence of its text (or the text that of the prompt)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from kexue_train.downstream.evaluate.load_model import LoadedHead
from kexue_train.downstream.evaluate.sequences import Ids, batches, encode, padded, tokens_at_once
from kexue_train.downstream.evaluate.zero_shot.layout import Layout, Pair, encode_texts
from kexue_train.downstream.evaluate.zero_shot.questions import Questions
from kexue_train.foundation.errors import EvaluationError

OnTokens = Callable[[int, int], None]
"""Receives slots done and in all."""


@dataclass(frozen=True)
class PromptScores:
    """What the model says to every prompt of every text."""

    scores: npt.NDArray[np.float64]
    """(n, K) log-odds of "is next", -inf where there is no prompt."""
    num_cut: int
    """Texts that were cut, for some prompt."""
    unknown_rate: float
    """Share of unknown tokens in the texts and prompts."""


def score_next_sentences(
    loaded: LoadedHead,
    questions: Questions,
    *,
    order: Literal["prefix", "suffix"],
    has_blank: bool,
    max_length: int,
    tokens_per_batch: int | None = None,
    on_tokens: OnTokens = lambda _done, _total: None,
) -> PromptScores:
    """Next-sentence scores of all questions, in batches of similar lengths; every string is tokenized once.

    Raises:
        EvaluationError: If a score is not finite.
    """
    texts = encode_texts(loaded.tokenizer, questions.texts, has_blank=has_blank)
    prompts = encode(loaded.tokenizer, questions.prompts)
    layout = Layout(loaded.tokenizer.cls_token_id, loaded.tokenizer.sep_token_id, order, max_length)
    of_text, of_choice = np.nonzero(questions.prompt_of >= 0)
    of_prompt = questions.prompt_of[of_text, of_choice]
    sizes = np.array([text.size for text in texts])[of_text] + np.array([len(ids) for ids in prompts])[of_prompt]
    lengths = np.minimum(sizes + 3, max_length)
    total, done, places, found = int(lengths.sum()), 0, [], []
    for batch in batches(lengths, tokens_per_batch or tokens_at_once(loaded.device)):
        pairs = [layout.join(texts[of_text[i]], prompts[of_prompt[i]]) for i in batch]
        found.append(next_sentence_log_odds(loaded, pairs))  # not waited for: a GPU goes on
        places.append(batch)
        done += int(lengths[batch].sum())
        on_tokens(done, total)
    flat = np.empty(len(lengths))
    flat[np.concatenate(places)] = torch.cat(found).double().cpu().numpy()
    if not np.isfinite(flat).all():
        raise EvaluationError(
            f"{loaded.folder}: {np.count_nonzero(~np.isfinite(flat))} of {len(flat)} scores are not finite, so the "
            "model is damaged or training diverged; evaluate an earlier checkpoint"
        )
    scores = np.full(questions.prompt_of.shape, -np.inf)
    scores[of_text, of_choice] = flat
    num_cut = len(np.unique(of_text[sizes + 3 > max_length]))
    return PromptScores(
        scores, num_cut, unknown_rate(loaded, [*(piece for text in texts for piece in text[:3]), *prompts])
    )


@torch.inference_mode()
def next_sentence_log_odds(loaded: LoadedHead, pairs: Sequence[Pair]) -> torch.Tensor:
    """Logit of class 0 ("is next") minus that of class 1: (B,) fp32, on the model's device.

    It orders pairs as the probability does, which in fp32 is 1 for all that are likely.
    """
    lengths = np.array([len(pair.ids) for pair in pairs])
    place = np.arange(lengths.max())
    second_starts = np.array([pair.second_starts for pair in pairs])
    inputs = {
        "input_ids": padded([pair.ids for pair in pairs], loaded.tokenizer.pad_token_id or 0),
        "attention_mask": (place < lengths[:, None]).astype(np.int64),
        "token_type_ids": ((place >= second_starts[:, None]) & (place < lengths[:, None])).astype(np.int64),
    }
    positions = [pair.positions for pair in pairs if pair.positions is not None]
    if positions:
        inputs["position_ids"] = padded(positions, 0)
    on_device = {name: torch.from_numpy(array).to(loaded.device, non_blocking=True) for name, array in inputs.items()}
    logits: torch.Tensor = loaded.model(**on_device).logits.float()
    return logits[:, 0] - logits[:, 1]


def unknown_rate(loaded: LoadedHead, pieces: Sequence[Ids]) -> float:
    """Share of [UNK] among all tokens; 0 if there are none."""
    ids = np.concatenate(pieces)
    return float(np.mean(ids == loaded.tokenizer.unk_token_id)) if ids.size else 0.0
