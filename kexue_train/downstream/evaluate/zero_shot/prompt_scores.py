"""How well each prompt fits its text, for a head of next sentences (NSP-BERT) and one of masked words (PET).

Text and prompt become one token sequence, no longer than the model takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from kexue_train.downstream.evaluate.masked_words import Cloze, masked_word_scores
from kexue_train.downstream.evaluate.zero_shot.questions import Questions
from kexue_train.downstream.load_model import LoadedHead
from kexue_train.downstream.sequences import Ids, batches, encode, padded, share_room, tokens_at_once
from kexue_train.downstream.task_files import Text
from kexue_train.foundation.errors import EvaluationError


class EncodedText(NamedTuple):
    """The tokens of a ``Text``."""

    before: Ids
    middle: Ids
    after: Ids
    has_blank: bool

    @property
    def size(self) -> int:
        """Tokens in all."""
        return len(self.before) + len(self.middle) + len(self.after)

    def cut(self, room: int) -> EncodedText:
        """Return at most ``room`` tokens.

        The longest value loses its end (what the template says around it stays). With a blank both sides lose their
        outer ends, the longer one first.
        """
        excess = self.size - room
        if excess <= 0:
            return self
        if self.has_blank:
            kept_before = share_room(len(self.before), len(self.after), room)
            before = self.before[len(self.before) - kept_before :]
            return EncodedText(before, self.middle, self.after[: room - kept_before], True)
        middle = self.middle[: max(0, len(self.middle) - excess)]
        before = self.before[:room]
        return EncodedText(before, middle, self.after[: room - len(before) - len(middle)], False)


def encode_texts(tokenizer: Any, texts: Sequence[Text], *, has_blank: bool) -> list[EncodedText]:
    """Return the pieces of every text in tokens; a piece begins and ends a word."""
    before, middle, after = (encode(tokenizer, pieces) for pieces in zip(*texts, strict=True))
    return [EncodedText(*pieces, has_blank) for pieces in zip(before, middle, after, strict=True)]


@dataclass(frozen=True)
class Layout:
    """How a text and a prompt become one sequence."""

    cls: int
    sep: int
    order: Literal["prefix", "suffix"]
    max_length: int

    @property
    def room(self) -> int:
        """Tokens that fit besides [CLS] and two [SEP]."""
        return self.max_length - 3

    def join(self, text: EncodedText, prompt: Ids) -> Pair:
        """Return ``[CLS] prompt [SEP] text [SEP]``, or the text first; the prompt keeps up to half of the room."""
        prompt = prompt[: max(self.room - text.size, self.room // 2)]
        text = text.cut(self.room - len(prompt))
        body = np.concatenate(text[:3])
        first, second = (prompt, body) if self.order == "prefix" else (body, prompt)
        ids = np.concatenate(([self.cls], first, [self.sep], second, [self.sep]))
        return Pair(ids, len(first) + 2, self._positions(text, len(prompt)) if text.has_blank else None)

    def _positions(self, text: EncodedText, prompt: int) -> Ids:
        """Return positions as if the prompt's tokens stood at the blank of the text.

        Source: nsp_bert_cloze_style.py of github.com/sunyilgdx/NSP-BERT.
        """
        start = 2 if self.order == "prefix" else 1
        blank = start + len(text.before)
        before, at_blank = np.arange(start, blank), np.arange(blank, blank + prompt)
        after = np.arange(blank + prompt, blank + prompt + len(text.after))
        end = blank + prompt + len(text.after)
        if self.order == "prefix":
            return np.concatenate(([0], at_blank, [1], before, after, [end]))
        return np.concatenate(([0], before, after, [end], at_blank, [end + 1]))


class Pair(NamedTuple):
    """One sequence."""

    ids: Ids
    second_starts: int
    """Where the second segment begins."""
    positions: Ids | None


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


@torch.inference_mode()
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
    """Score all questions by next sentences, in batches of similar lengths; every string is tokenized once.

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
    total, done, indices, found = int(lengths.sum()), 0, [], []
    for batch in batches(lengths, tokens_per_batch or tokens_at_once(loaded.device)):
        pairs = [layout.join(texts[of_text[i]], prompts[of_prompt[i]]) for i in batch]
        found.append(next_sentence_log_odds(loaded, pairs))  # not waited for, so that a GPU stays busy
        indices.append(batch)
        done += int(lengths[batch].sum())
        on_tokens(done, total)
    flat = np.empty(len(lengths))
    flat[np.concatenate(indices)] = torch.cat(found).double().cpu().numpy()
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


def next_sentence_log_odds(loaded: LoadedHead, pairs: Sequence[Pair]) -> torch.Tensor:
    """Return the logit of class 0 ("is next") minus that of class 1, with gradients: (B,) fp32, on the model's device.

    It orders pairs as the probability does, which in fp32 is 1 for all that are likely.
    """
    lengths = np.array([len(pair.ids) for pair in pairs])
    slot = np.arange(lengths.max())
    second_starts = np.array([pair.second_starts for pair in pairs])
    inputs = {
        "input_ids": padded([pair.ids for pair in pairs], loaded.tokenizer.pad_token_id or 0),
        "attention_mask": (slot < lengths[:, None]).astype(np.int64),
        "token_type_ids": ((slot >= second_starts[:, None]) & (slot < lengths[:, None])).astype(np.int64),
    }
    positions = [pair.positions for pair in pairs if pair.positions is not None]
    if positions:
        inputs["position_ids"] = padded(positions, 0)
    on_device = {name: torch.from_numpy(array).to(loaded.device, non_blocking=True) for name, array in inputs.items()}
    logits: torch.Tensor = loaded.model(**on_device).logits.float()
    return logits[:, 0] - logits[:, 1]


def unknown_rate(loaded: LoadedHead, pieces: Sequence[Ids]) -> float:
    """Return the share of [UNK] among all tokens; 0 if there are none."""
    ids = np.concatenate(pieces)
    return float(np.mean(ids == loaded.tokenizer.unk_token_id)) if ids.size else 0.0


def score_masked_words(
    loaded: LoadedHead,
    questions: Questions,
    *,
    max_length: int,
    on_tokens: OnTokens = lambda _done, _total: None,
) -> PromptScores:
    """Return the log-probabilities of the words of every label at the blank; one forward per text.

    Raises:
        EvaluationError: If the words of a text's labels differ in their number of tokens (then their probabilities
            cannot be compared), or a score is not finite.
    """
    texts = encode_texts(loaded.tokenizer, questions.texts, has_blank=True)
    words = encode(loaded.tokenizer, questions.prompts)
    sizes = np.array([len(ids) for ids in words])
    clozes, num_cut = [], 0
    for text, choices in zip(texts, questions.prompt_of, strict=True):
        own = choices[choices >= 0]
        _require_equal_sizes(sizes[own], [questions.prompts[i] for i in own])
        clozes.append(_cloze(loaded, text, [words[i] for i in own], max_length))
        num_cut += text.size + sizes[own[0]] + 2 > max_length
    scores = np.full(questions.prompt_of.shape, -np.inf)
    for row, found in zip(scores, masked_word_scores(loaded, clozes, on_tokens), strict=True):
        row[: len(found)] = found
    pieces = [*(piece for text in texts for piece in text[:3]), *words]
    return PromptScores(scores, int(num_cut), unknown_rate(loaded, pieces))


def _cloze(loaded: LoadedHead, text: EncodedText, words: Sequence[Ids], max_length: int) -> Cloze:
    tokenizer, size = loaded.tokenizer, len(words[0])
    if size + 2 > max_length:
        raise EvaluationError(f"the words of a label are {size} tokens, too many for {max_length}; give shorter ones")
    text = text.cut(max_length - 2 - size)
    masks = np.full(size, tokenizer.mask_token_id)
    ids = np.concatenate(([tokenizer.cls_token_id], text.before, masks, text.after, [tokenizer.sep_token_id]))
    return Cloze(ids, 1 + len(text.before) + np.arange(size), np.stack(words))


def _require_equal_sizes(sizes: Ids, words: Sequence[str]) -> None:
    if sizes.min() == 0:
        raise EvaluationError(f"the words {words[int(sizes.argmin())]!r} have no token; give words the model knows")
    if sizes.min() != sizes.max():
        shorter, longer = words[int(sizes.argmin())], words[int(sizes.argmax())]
        raise EvaluationError(
            f"the words {shorter!r} are {sizes.min()} tokens and {longer!r} {sizes.max()}, so their probabilities "
            "cannot be compared; give words of equally many tokens under pet.labels"
        )
